// The loss on a GPU: the kernels that lalref/engines/kernels.py launches. docs/cuda.md draws the tile.
//
// Gather form: each output is summed by one thread in a fixed order, without atomics, so that every run gives the
// same bits. A block is a tile of blockDim.y rows and blockDim.x columns of windows or of pixels, and every kernel
// that pools goes through `pool` of kernels_pooling.cu. Symbols and equation numbers are those of docs/specification.md.
// No #include, no vector types, no inline assembly: NVRTC compiles this text, and g++ compiles it to test it.
// CuPy asks the compiler for -ftz=true after all that is asked for here, so a subnormal float is 0 in all arithmetic.

typedef long long Index;  // of an element: arrays may have more than 2^31 of them

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(bfloat16 v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ inline float widen(float16 v) {
    const unsigned magnitude = v.bits & 0x7fffu;
    float wide = __uint_as_float((magnitude << 13) + 0x38000000u);
    if (magnitude < 0x0400u) wide = float(magnitude) * 5.9604644775390625e-8f;  // subnormal: so many times 2^-24
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
__device__ inline float smallest(float) { return __uint_as_float(0x00800000u); }  // of what is not flushed to 0
__device__ inline double smallest(double) { return 4.9406564584124654e-324; }

// Rounded, whatever the compiler would fuse it with.
__device__ inline float product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double product(double a, double b) { return __dmul_rn(a, b); }

// One call of the loss; kernels.py has the same fields in the same order.
struct Call {
    Index x_n, x_c, x_h, x_w;              // how far apart neighbours are: in the logits,
    Index grad_n, grad_c, grad_h, grad_w;  // and in the gradient
    double sigma, alpha;                   // of (1), 0 where every weight is 1; label_smoothing
    int C, H, W;                           // classes, rows and columns of the image
    int rows, columns, stride_h, stride_w; // of the windows: window (a, b) stands at pixel (a stride_h, b stride_w)
    int reach_h, reach_w;                  // r of each axis, cut to where weights are not 0
    int most, span;                        // classes of a tile to pool one by one, 0: by cells; for how many t U_t is kept at a time
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
