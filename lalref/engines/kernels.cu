// The loss on a GPU: the kernels that lalref/engines/kernels.py launches. docs/cuda.md draws the tile.
//
// Gather form: each output is summed by one thread in a fixed order, without atomics, so that every run gives the
// same bits. A block is a tile of blockDim.y rows and blockDim.x columns of windows or of pixels, and every kernel
// that pools goes through `pool` below. Symbols and equation numbers are those of docs/specification.md.
// No #include, no vector types, no inline assembly: NVRTC compiles this text, and g++ compiles it to test it.

typedef long long Index;  // of an element: arrays may have more than 2^31 of them

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(bfloat16 v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ inline float widen(float16 v) {
    const unsigned magnitude = v.bits & 0x7fffu;
    float wide = __uint_as_float(magnitude << 13) * 5.192296858534828e33f;  // 2^112: exact, for subnormals too
    if (magnitude >= 0x7c00u) wide = __uint_as_float(0x7f800000u | magnitude << 13);
    return __uint_as_float(__float_as_uint(wide) | (v.bits & 0x8000u) << 16);
}

__device__ inline void narrow(float v, float& out) { out = v; }
__device__ inline void narrow(double v, double& out) { out = v; }
__device__ inline void narrow(float v, bfloat16& out) {  // to nearest, ties to even
    const unsigned bits = __float_as_uint(v);
    out.bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
__device__ inline void narrow(float v, float16& out) {
    const unsigned bits = __float_as_uint(v), size = bits & 0x7fffffffu;
    unsigned half = (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13;
    if (size < 0x38800000u)  // subnormal: 0.5 has the last place that is wanted, so the addition rounds
        half = __float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u;
    if (size >= 0x477ff000u) half = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
    out.bits = half | (bits >> 16 & 0x8000u);
}

template <typename T> __device__ inline bool is_finite(T v) { return v - v == T(0); }
template <typename T> __device__ inline T not_a_number() { return T(__uint_as_float(0x7fc00000u)); }
template <typename T> __device__ inline T minus_infinity() { return T(__uint_as_float(0xff800000u)); }

// One call of the loss; kernels.py has the same fields in the same order.
struct Call {
    Index x_n, x_c, x_h, x_w;              // how far apart neighbours are: in the logits,
    Index grad_n, grad_c, grad_h, grad_w;  // and in the gradient
    double sigma, alpha;                   // of (1), 0 where every weight is 1; label_smoothing
    int C, H, W;                           // classes, rows and columns of the image
    int rows, columns, stride_h, stride_w; // of the windows: window (a, b) stands at pixel (a stride_h, b stride_w)
    int reach_h, reach_w;                  // r of each axis, cut to where weights are not 0
    int most, span;                        // classes of a tile to pool one by one, 0: by cells; U_t at a time
    int counted;                           // D of (7) is the group's size, not its sum of weights
};

// Labels as `pool` meets them: of the pixels or of the windows of one image, -1 where nothing is read.
struct Map {
    const int* label;
    int rows, columns, step_h, step_w;  // entry (a, b) stands at pixel (a step_h, b step_w)
};

__device__ inline Map pixels_of(const Call& call, const int* labels, Index n) {
    return {labels + n * call.H * call.W, call.H, call.W, 1, 1};
}
__device__ inline Map windows_of(const Call& call, const int* centres, Index n) {
    return {centres + n * call.rows * call.columns, call.rows, call.columns, call.stride_h, call.stride_w};
}

// Where a thread is: its tile, its entry (a, b) of the map that it works out, and that entry's label.
struct Place {
    Index n, at;        // the image, and the entry within the batch's map
    int a, b, first_b;  // first_b: the tile's first column
    int label;          // -1 outside the map too
    const int* kinds;   // how many classes the tile has, -1 where they are too many, and each as a Kind
};

// A class of a tile, and the thread that stands at one pixel of it; a block has at most 256 threads.
struct Kind {
    int packed;
    __device__ int label() const { return packed >> 8; }
    __device__ int thread() const { return packed & 255; }
};

__device__ inline int tiles_of(const Map& map) {
    return ((map.rows + blockDim.y - 1) / blockDim.y) * ((map.columns + blockDim.x - 1) / blockDim.x);
}

__device__ inline Place place(const Call& call, const Map& map, const int* kinds, Index n, int tile) {
    const int across = (map.columns + blockDim.x - 1) / blockDim.x;
    Place p;
    p.n = n;
    p.first_b = tile % across * blockDim.x;
    p.a = tile / across * blockDim.y + threadIdx.y;
    p.b = p.first_b + threadIdx.x;
    const Index within = (Index)p.a * map.columns + p.b;
    p.at = n * map.rows * map.columns + within;
    p.label = p.a < map.rows && p.b < map.columns ? map.label[within] : -1;
    p.kinds = kinds ? kinds + (n * tiles_of(map) + tile) * (call.most + 1) : nullptr;
    return p;
}

// --- Stage 1, pooling: (A u)_p = sum over q in G_p of w(d(p, q)) u_q, (13) --------------------------------------

// w(d) for d = 0 .. reach, (1), at the start of the block's shared memory; what follows it is for column sums.
template <typename T> __device__ T* weight_table(const Call& call, T* weight) {
    const int reach = max(call.reach_h, call.reach_w);
    for (int d = threadIdx.y * blockDim.x + threadIdx.x; d <= reach; d += blockDim.x * blockDim.y)
        weight[d] = call.sigma > 0 ? T(exp(-0.5 * (d / call.sigma) * (d / call.sigma))) : T(1);
    __syncthreads();
    return weight + reach + 1;
}

// The window cell by cell: (2 r + 1)^2 of them. Serves strides, small windows, and tiles of many classes.
template <typename T, int G, typename Source>
__device__ void pool_cells(const Call& call, const Map& out, const Map& in, const Place& p, const Source& u, const T* weight, T (&z)[G]) {
    const int i = p.a * out.step_h, j = p.b * out.step_w;
    const int a_0 = max(0, (i - call.reach_h + in.step_h - 1) / in.step_h), a_1 = min(in.rows - 1, (i + call.reach_h) / in.step_h);
    const int b_0 = max(0, (j - call.reach_w + in.step_w - 1) / in.step_w), b_1 = min(in.columns - 1, (j + call.reach_w) / in.step_w);
    for (int a = a_0; a <= a_1; ++a) {
        const int* label = in.label + (Index)a * in.columns;
        const int d_h = abs(a * in.step_h - i);
        for (int b = b_0; b <= b_1; ++b)
            if (label[b] == p.label) {  // a choice, not a factor 0: what is not in the group is never read
                const T w = weight[max(d_h, abs(b * in.step_w - j))];
                for (int g = 0; g < G; ++g) z[g] += w * u(g, a, b);
            }
    }
}

// Sum of the entries at distance d above and below (a, b) that are of class `kind`.
template <typename T, int G, typename Source>
__device__ void pair(const Map& in, const Source& u, int kind, int a, int b, int d, T (&sum)[G]) {
    for (int g = 0; g < G; ++g) sum[g] = 0;
    if (a >= d && in.label[(Index)(a - d) * in.columns + b] == kind)
        for (int g = 0; g < G; ++g) sum[g] = u(g, a - d, b);
    if (d > 0 && a + d < in.rows && in.label[(Index)(a + d) * in.columns + b] == kind)
        for (int g = 0; g < G; ++g) sum[g] += u(g, a + d, b);
}

// O(r) for one class. The chessboard distance of the cell (di, dj) is max(|di|, |dj|), so the window is the sum over
// dj of U_|dj| at column j + dj, where U_t = w(t) (sum of |di| <= t) + sum of w(|di|) over |di| > t: the inner
// sums grow outwards, the outer ones inwards, and all U_t of a column cost about as much as the column has cells.
// Four t at a time, from the outermost: their cells are read once, into registers, and the inner sums are completed
// by what the blocks of four further in came to. Where not every t fits into shared memory, `span` of them do.
// Every thread of the block takes part, for its tile and the columns in reach of it.
template <typename T, int G, typename Source>
__device__ void pool_kind(const Call& call, const Map& in, const Place& p, int kind, const Source& u, const T* weight, T* sums, T (&z)[G]) {
    constexpr int FOUR = 4;
    const int r_h = call.reach_h, r_w = call.reach_w, width = blockDim.x + 2 * r_w, step = width * blockDim.y;
    T* const U = sums + threadIdx.y * width;  // (span, G, blockDim.y, width); after it one for each block of four
    T* const totals = U + call.span * G * step;
    for (int t_0 = 0; t_0 <= r_w; t_0 += call.span) {
        const int span = min(call.span, r_w + 1 - t_0);
        for (int k = threadIdx.x; k < width; k += blockDim.x) {
            const int b = p.first_b - r_w + k;
            const int r = b >= 0 && b < in.columns && p.a < in.rows ? r_h : -1;  // outside there is nothing to read
            T outer[G] = {}, inner[G] = {}, sum[G];
            for (int d = r; d >= t_0 + span; --d) {
                pair<T, G>(in, u, kind, p.a, b, d, sum);
                for (int g = 0; g < G; ++g) outer[g] += weight[d] * sum[g];
            }
#pragma unroll 1
            for (int s_0 = (span - 1) / FOUR * FOUR; s_0 >= 0; s_0 -= FOUR) {
                T P[FOUR][G], O[FOUR][G];
#pragma unroll
                for (int s = FOUR - 1; s >= 0; --s) {
                    const int t = t_0 + s_0 + s;
                    for (int g = 0; g < G; ++g) P[s][g] = 0, O[s][g] = outer[g];
                    if (s_0 + s < span && t <= r) {
                        pair<T, G>(in, u, kind, p.a, b, t, P[s]);
                        for (int g = 0; g < G; ++g) outer[g] += weight[t] * P[s][g];
                    }
                }
#pragma unroll
                for (int s = 0; s < FOUR; ++s)
                    for (int g = 0; g < G; ++g) {
                        if (s > 0) P[s][g] += P[s - 1][g];
                        if (s_0 + s < span) U[((s_0 + s) * G + g) * step + k] = weight[t_0 + s_0 + s] * P[s][g] + O[s][g];
                        if (s == FOUR - 1 && span > FOUR) totals[(s_0 / FOUR * G + g) * step + k] = P[s][g];
                    }
            }
            for (int d = 0; d < t_0 && d <= r; ++d) {
                pair<T, G>(in, u, kind, p.a, b, d, sum);
                for (int g = 0; g < G; ++g) inner[g] += sum[g];
            }
            for (int s = t_0 > 0 ? 0 : FOUR; s < span; ++s)
                for (int g = 0; g < G; ++g) {
                    if (s > 0 && s % FOUR == 0) inner[g] += totals[((s / FOUR - 1) * G + g) * step + k];
                    U[(s * G + g) * step + k] += weight[t_0 + s] * inner[g];
                }
        }
        __syncthreads();
        if (p.label == kind)
            for (int s = 0; s < span; ++s)
                for (int g = 0; g < G; ++g) {
                    const T* const at = U + (s * G + g) * step + threadIdx.x + r_w;
                    z[g] += t_0 + s > 0 ? at[-t_0 - s] + at[t_0 + s] : at[0];
                }
        __syncthreads();  // before the next class or channel overwrites the sums
    }
}

// How far a window may reach for its own pixel to be the one that others are compared with: in larger ones a pixel
// unlike the others weighs little, and would cost them their digits.
constexpr int FEW = 3;

// z = A (u - near) for G channels at once, `near` being a number of the group's own that the source names: 0, or for
// logits one of them. Every thread of a block must come here; the tile's classes decide how.
template <typename T, int G, typename Source>
__device__ void pool(const Call& call, const Map& out, const Map& in, const Place& p, Source u, const T* weight, T* sums, T (&z)[G], T (&near)[G]) {
    for (int g = 0; g < G; ++g) z[g] = near[g] = 0;
    const int count = call.most > 0 ? p.kinds[0] : -1;
    if (count < 0) {
        if (p.label < 0) return;
        if (max(call.reach_h, call.reach_w) <= FEW) u.stay_near(p.a * out.step_h, p.b * out.step_w);
        for (int g = 0; g < G; ++g) near[g] = u.near(g);
        pool_cells<T, G>(call, out, in, p, u, weight, z);
    } else
        for (int k = 1; k <= count; ++k) {
            const Kind kind{p.kinds[k]};
            const int row = kind.thread() / blockDim.x, column = kind.thread() % blockDim.x;
            u.stay_near(p.a - threadIdx.y + row, p.first_b + column);
            u.agree(p.label == kind.label(), p.a, p.b);
            if (p.label == kind.label())
                for (int g = 0; g < G; ++g) near[g] = u.near(g);
            pool_kind<T, G>(call, in, p, kind.label(), u, weight, sums, z);
        }
}

// What is pooled: G channels from `first`; where fewer are left the last one is worked out again.
// A mean is rounded in proportion to what is averaged, and a nearly perfect prediction turns on the differences of
// means: so logits are pooled as they differ from those of one pixel of the group. Not where D counts, for then a
// constant does not come through pooling unchanged.
template <typename X, typename T, int G> struct Logits {
    const X* x;
    Index step_c, step_h, step_w;
    int first, last;
    bool apart;
    T from[G];
    __device__ Logits(const Call& call, const X* logits, Index n, int first)
        : x(logits + n * call.x_n), step_c(call.x_c), step_h(call.x_h), step_w(call.x_w), first(first), last(call.C - 1), apart(!call.counted) {
        for (int g = 0; g < G; ++g) from[g] = 0;
    }
    __device__ T logit(int g, int a, int b) const { return widen(x[min(first + g, last) * step_c + a * step_h + b * step_w]); }
    __device__ void stay_near(int a, int b) {
        for (int g = 0; g < G; ++g) {
            const T v = apart ? logit(g, a, b) : T(0);
            from[g] = is_finite(v) ? v : T(0);
        }
    }
    // A pixel unlike the others of its class would cost them their digits: where any in the tile lies far from it,
    // they are pooled as they are. Every thread of the block comes here, `mine` if its pixel (a, b) is of the class.
    __device__ void agree(bool mine, int a, int b) {
        if (apart)
            for (int g = 0; g < G; ++g) {
                const T v = mine ? logit(g, a, b) : T(0);
                if (__syncthreads_count(mine && is_finite(v) && fabs(v - from[g]) > fabs(v) + 1) > 0) from[g] = 0;
            }
    }
    __device__ T near(int g) const { return from[g]; }
    __device__ T operator()(int g, int a, int b) const { return logit(g, a, b) - from[g]; }
};
template <typename T> struct AsItIs {
    __device__ void stay_near(int, int) {}
    __device__ void agree(bool, int, int) {}
    __device__ T near(int) const { return 0; }
};
template <typename T> struct Planes : AsItIs<T> {
    const T* z;
    Index plane;
    int columns, last;
    __device__ Planes(const T* z, Index plane, int columns, int last) : z(z), plane(plane), columns(columns), last(last) {}
    __device__ T operator()(int g, int a, int b) const { return z[min(g, last) * plane + (Index)a * columns + b]; }
};
template <typename T> struct One : AsItIs<T> {
    __device__ T operator()(int, int, int) const { return 1; }
};
template <typename T> struct Numbers : AsItIs<T> {
    const T* u;
    int columns;
    __device__ Numbers(const T* u, int columns) : u(u), columns(columns) {}
    __device__ T operator()(int, int a, int b) const { return u[(Index)a * columns + b]; }
};

// Which classes the pixels of each tile have, as Kinds in falling order: kinds (N, tiles, most + 1).
extern "C" __global__ void list_kinds(const int* __restrict__ labels, int* __restrict__ kinds, Call call) {
    __shared__ int largest[32];
    const int tiles = tiles_of(pixels_of(call, labels, 0));
    const Index n = blockIdx.x / tiles;
    const Place p = place(call, pixels_of(call, labels, n), kinds, n, blockIdx.x % tiles);
    const int id = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x * blockDim.y / 32;
    int* list = kinds + (Index)blockIdx.x * (call.most + 1);
    int rest = p.label < 0 ? -1 : p.label << 8 | id;
    for (int count = 0;; ++count) {
        int kind = rest;
        for (int lanes = 16; lanes > 0; lanes /= 2) kind = max(kind, __shfl_xor_sync(0xffffffffu, kind, lanes));
        if (id % 32 == 0) largest[id / 32] = kind;
        __syncthreads();
        for (int warp = 0; warp < warps; ++warp) kind = max(kind, largest[warp]);
        __syncthreads();  // before the next round overwrites `largest`
        const bool found = kind >= 0, full = count == call.most;
        if (id == 0) {
            if (!found || full) list[0] = found ? -1 : count;
            else list[count + 1] = kind;
        }
        if (!found || full) return;
        if (rest >> 8 == kind >> 8) rest = -1;
    }
}

// D_p of (7), or the group's size if `call` says so (no sigma, radii not cut); 1 where there is no window.
template <typename T>
__global__ void divisors(const int* __restrict__ labels, const int* __restrict__ centres, const int* __restrict__ kinds, T* __restrict__ D, Call call) {
    extern __shared__ double shared[];
    T* const weight = reinterpret_cast<T*>(shared);
    T* const sums = weight_table(call, weight);
    const int tiles = tiles_of(windows_of(call, centres, 0));
    const Index n = blockIdx.x / tiles;
    const Map out = windows_of(call, centres, n), in = pixels_of(call, labels, n);
    const Place p = place(call, out, kinds, n, blockIdx.x % tiles);
    T z[1], near[1];
    pool<T, 1>(call, out, in, p, One<T>(), weight, sums, z, near);
    if (p.a < out.rows && p.b < out.columns) D[p.at] = p.label >= 0 ? z[0] : T(1);
}
