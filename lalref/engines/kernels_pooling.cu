// Stage 1, pooling: (A u)_p = sum over q in G_p of w(d(p, q)) u_q, (13). kernels.cu comes before this text.

// w(d) for d = 0 .. reach, (1), at the start of the block's shared memory; what follows it is for column sums. A
// weight that would be flushed to 0 is put at the least that is not: else 0 times an infinite logit would be NaN.
template <typename T> __device__ T* weight_table(const Call& call, T* weight) {
    const int reach = max(call.reach_h, call.reach_w);
    for (int d = threadIdx.y * blockDim.x + threadIdx.x; d <= reach; d += blockDim.x * blockDim.y)
        weight[d] = call.sigma > 0 ? max(smallest(T()), T(exp(-0.5 * (d / call.sigma) * (d / call.sigma)))) : T(1);
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

// How far column b reaches up and down for the row a of windows; -1: there is nothing to read.
__device__ inline int column_reach(const Call& call, const Map& in, int a, int b) {
    return b >= 0 && b < in.columns && a < in.rows ? call.reach_h : -1;
}

// O(r) for one class. The chessboard distance of the cell (di, dj) is max(|di|, |dj|), so the window is the sum over
// dj of U_|dj| at column j + dj, where U_t = w(t) (sum of |di| <= t) + sum of w(|di|) over |di| > t: the inner
// sums grow outwards, the outer ones inwards, and all U_t of a column cost about as much as the column has cells.
// Every thread of the block takes part, for its tile and the columns in reach of it; first_b + k - r_w is column k.
//
// Four t at a time, from the outermost: their cells are read once, into registers, and the inner sums are completed
// by what the blocks of four further in came to.
template <typename T, int G, typename Source>
__device__ void sum_columns(const Call& call, const Map& in, const Place& p, int kind, const Source& u, const T* weight, int width, int step, T* U, T* totals) {
    constexpr int FOUR = 4;
    const int span = call.reach_w + 1;
    for (int k = threadIdx.x; k < width; k += blockDim.x) {
        const int b = p.first_b - call.reach_w + k, r = column_reach(call, in, p.a, b);
        T outer[G] = {}, inner[G] = {}, sum[G];
        for (int d = r; d >= span; --d) {
            pair<T, G>(in, u, kind, p.a, b, d, sum);
            for (int g = 0; g < G; ++g) outer[g] += weight[d] * sum[g];
        }
#pragma unroll 1
        for (int s_0 = (span - 1) / FOUR * FOUR; s_0 >= 0; s_0 -= FOUR) {
            T P[FOUR][G], O[FOUR][G];
#pragma unroll
            for (int s = FOUR - 1; s >= 0; --s) {
                const int t = s_0 + s;
                for (int g = 0; g < G; ++g) P[s][g] = 0, O[s][g] = outer[g];
                if (t < span && t <= r) {
                    pair<T, G>(in, u, kind, p.a, b, t, P[s]);
                    for (int g = 0; g < G; ++g) outer[g] += weight[t] * P[s][g];
                }
            }
#pragma unroll
            for (int s = 0; s < FOUR; ++s)
                for (int g = 0; g < G; ++g) {
                    if (s > 0) P[s][g] += P[s - 1][g];
                    if (s_0 + s < span) U[((s_0 + s) * G + g) * step + k] = weight[s_0 + s] * P[s][g] + O[s][g];
                    if (s == FOUR - 1 && span > FOUR) totals[(s_0 / FOUR * G + g) * step + k] = P[s][g];
                }
        }
        for (int t = FOUR; t < span; ++t)
            for (int g = 0; g < G; ++g) {
                if (t % FOUR == 0) inner[g] += totals[((t / FOUR - 1) * G + g) * step + k];
                U[(t * G + g) * step + k] += weight[t] * inner[g];
            }
    }
}

// Where not every t fits into shared memory: the inner part of U_t for `some` t from t_0 outwards, or its outer part
// for `some` t from t_0 inwards. Each column's sum so far, `run`, is all that goes from one call to the next.
template <typename T, int G, typename Source>
__device__ void sweep_columns(const Call& call, const Map& in, const Place& p, int kind, const Source& u, const T* weight, int width, int step, T* U, T* run,
                              bool outwards, int t_0, int some) {
    for (int k = threadIdx.x; k < width; k += blockDim.x) {
        const int b = p.first_b - call.reach_w + k, r = column_reach(call, in, p.a, b);
        const bool begins = t_0 == (outwards ? 0 : call.reach_w);
        T so_far[G], sum[G];
        for (int g = 0; g < G; ++g) so_far[g] = begins ? T(0) : run[g * step + k];
        for (int d = begins && !outwards ? r : 0; d > call.reach_w; --d) {
            pair<T, G>(in, u, kind, p.a, b, d, sum);
            for (int g = 0; g < G; ++g) so_far[g] += weight[d] * sum[g];
        }
        for (int s = 0; s < some; ++s) {
            const int t = outwards ? t_0 + s : t_0 - s;
            for (int g = 0; g < G; ++g) sum[g] = 0;
            if (t <= r) pair<T, G>(in, u, kind, p.a, b, t, sum);
            for (int g = 0; g < G; ++g) {
                const T outer = so_far[g];
                so_far[g] += outwards ? sum[g] : weight[t] * sum[g];
                U[(s * G + g) * step + k] = outwards ? weight[t] * so_far[g] : outer;
            }
        }
        for (int g = 0; g < G; ++g) run[g * step + k] = so_far[g];
    }
}

template <typename T, int G, typename Source>
__device__ void pool_kind(const Call& call, const Map& in, const Place& p, int kind, const Source& u, const T* weight, T* sums, T (&z)[G]) {
    const int r_w = call.reach_w, width = blockDim.x + 2 * r_w, step = width * blockDim.y;
    T* const U = sums + threadIdx.y * width;  // (span, G, blockDim.y, width)
    T* const beyond = U + call.span * G * step;
    const bool at_once = call.span > r_w;
    for (int sweep = at_once; sweep < 2; ++sweep)
        for (int done = 0; done <= r_w; done += call.span) {
            const int some = min(call.span, r_w + 1 - done), t_0 = sweep == 0 || at_once ? done : r_w - done, way = sweep == 0 || at_once ? 1 : -1;
            if (at_once) sum_columns<T, G>(call, in, p, kind, u, weight, width, step, U, beyond);
            else sweep_columns<T, G>(call, in, p, kind, u, weight, width, step, U, beyond, sweep == 0, t_0, some);
            __syncthreads();
            if (p.label == kind)
                for (int s = 0; s < some; ++s)
                    for (int g = 0; g < G; ++g) {
                        const int t = t_0 + way * s;
                        const T* const at = U + (s * G + g) * step + threadIdx.x + r_w;
                        z[g] += t > 0 ? at[-t] + at[t] : at[0];
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
// means: so logits are pooled as they differ from those of one pixel of the group.
template <typename X, typename T, int G> struct Logits {
    const X* x;
    Index step_c, step_h, step_w;
    int first, last;
    T from[G];
    __device__ Logits(const Call& call, const X* logits, Index n, int first)
        : x(logits + n * call.x_n), step_c(call.x_c), step_h(call.x_h), step_w(call.x_w), first(first), last(call.C - 1) {
        for (int g = 0; g < G; ++g) from[g] = 0;
    }
    __device__ T logit(int g, int a, int b) const { return widen(x[min(first + g, last) * step_c + a * step_h + b * step_w]); }
    __device__ void stay_near(int a, int b) {
        for (int g = 0; g < G; ++g) {
            const T v = logit(g, a, b);
            from[g] = is_finite(v) ? v : T(0);
        }
    }
    // A pixel unlike the others of its class would cost them their digits: where any in the tile lies far from it,
    // they are pooled as they are. Every thread of the block comes here, `mine` if its pixel (a, b) is of the class.
    __device__ void agree(bool mine, int a, int b) {
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

// The sum of weights of each group, or its size if `call` says so (no sigma, radii not cut); 1 where there is no window.
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
