// Stage 2 on merged logits, and the way back: losses, slopes, gather. kernels.cu and kernels_pooling.cu come before
// this text.

// A merged logit z = hi + lo: one that was pooled, and how far the mean of all lies from it.
template <typename T> struct Merged {
    T hi, lo;
    __device__ Merged(T hi, T lo) : hi(is_finite(hi + lo) ? hi : T(0)), lo(is_finite(hi + lo) ? lo : hi + lo) {}
};

// What merges a window's logits, (17): z = k near + (sum of w (x - near)) / D, where k is the sum of weights over D.
template <typename T> struct Merge {
    T inverse, k, k_lo;  // 1 / D; k, and what its rounding left out
    __device__ Merge() : inverse(0), k(1), k_lo(0) {}
    __device__ Merge(T D, const double* weights) : inverse(1 / D), k(1), k_lo(0) {
        if (!weights) return;  // D is their sum
        k = T(*weights / D);
        k_lo = T(fma(-double(k), double(D), *weights) / D);
    }
    __device__ Merged<T> operator()(T near, T z) const {
        const T hi = product(k, near);
        return Merged<T>(hi, fma(k, near, -hi) + k_lo * near + z * inverse);
    }
};

// z - m as a number and what its rounding left out: the gradient goes as a power of exp(z - m).
template <typename T> struct Gap {
    T d, rest;
    __device__ Gap(Merged<T> z, Merged<T> m) : d(0), rest(0) {
        if (z.hi == m.hi && z.lo == m.lo) return;  // -inf from -inf too
        const T far = z.hi - m.hi, back = far - z.hi;
        const T little = (z.hi - (far - back)) - (m.hi + back) + (z.lo - m.lo);
        d = far + little;
        if (is_finite(d)) rest = little - (d - far);
    }
    __device__ T exponential() const { const T e = exp(d); return e + e * rest; }
    __device__ T reciprocal() const { const T e = exp(-d); return e - e * rest; }
};

// log-sum-exp of numbers that come one by one; the target's own term is kept apart, so that 1 - P_y is never a difference.
template <typename T> struct Softmax {
    Merged<T> m, y;   // the largest so far, and the target's
    T others, ahead;  // sum over c != y of exp(z_c - m); sum of m - z_c
    int seen;
    __device__ Softmax() : m(0, 0), y(0, 0), others(0), ahead(0), seen(0) {}
    __device__ void add(Merged<T> z, bool target) {
        if (seen == 0) m = z;
        Gap<T> below(z, m);
        if (below.d > 0) {
            others *= below.reciprocal();
            ahead += seen * below.d;
            m = z;
            below = Gap<T>(z, z);
        }
        ahead -= below.d;
        if (target) y = z; else others += below.exponential();
        ++seen;
    }
    __device__ bool bounded() const { return is_finite(m.lo); }
    __device__ T norm() const { return Gap<T>(y, m).exponential() + others; }  // sum of exp(z_c - m)
    __device__ T off() const { return bounded() ? others / norm() : not_a_number<T>(); }  // 1 - P_y
    __device__ T own() const { return bounded() ? Gap<T>(y, m).exponential() / norm() : not_a_number<T>(); }  // P_y
    __device__ T loss(T alpha) const {
        if (!bounded()) return not_a_number<T>();
        const T below_y = Gap<T>(y, m).d, log_norm = below_y == 0 ? log1p(others) : log(norm());
        T ell = 0;
        if (alpha < 1) ell = (1 - alpha) * (log_norm - below_y);
        if (alpha > 0) ell += alpha * (log_norm + ahead / seen);
        return ell;
    }
};

// ell_p of (5) and, where asked for, what the way back needs of softmax(z_p): m, sum of exp(z - m), 1 - P_y.
template <typename X, typename T, int G>
__global__ void losses(const X* __restrict__ logits, const int* __restrict__ labels, const int* __restrict__ centres, const int* __restrict__ kinds,
                       const T* __restrict__ D, const double* __restrict__ weights, T* __restrict__ ell, T* __restrict__ top, T* __restrict__ top_lo, T* __restrict__ norm, T* __restrict__ off, Call call) {
    extern __shared__ double shared[];
    T* const weight = reinterpret_cast<T*>(shared);
    T* const sums = weight_table(call, weight);
    const int tiles = tiles_of(windows_of(call, centres, 0));
    const Index n = blockIdx.x / tiles;
    const Map out = windows_of(call, centres, n), in = pixels_of(call, labels, n);
    const Place p = place(call, out, kinds, n, blockIdx.x % tiles);
    const bool window = p.label >= 0;
    const Merge<T> merge = window ? Merge<T>(D[p.at], weights ? weights + p.at : nullptr) : Merge<T>();
    Softmax<T> f;
    for (int c = 0; c < call.C; c += G) {
        T z[G], near[G];
        pool<T, G>(call, out, in, p, Logits<X, T, G>(call, logits, n, c), weight, sums, z, near);
        if (window)
            for (int g = 0; g < G; ++g)
                if (c + g < call.C) f.add(merge(near[g], z[g]), c + g == p.label);
    }
    if (p.a >= out.rows || p.b >= out.columns) return;
    const bool no_class = p.label >= call.C;  // with check=False
    ell[p.at] = !window ? T(0) : no_class ? not_a_number<T>() : f.loss(T(call.alpha));
    if (window && top) {
        top[p.at] = f.m.hi;
        top_lo[p.at] = f.m.lo;
        norm[p.at] = f.norm();
        off[p.at] = f.off();
    }
}

// z_bar / D of (12) and (13) for the windows of `images` images from first_n and `channels` classes from first_c:
// slope (images, channels, rows, columns). A block does up to 8 channels of its tile.
template <typename X, typename T, int G>
__global__ void slopes(const X* __restrict__ logits, const int* __restrict__ labels, const int* __restrict__ centres, const int* __restrict__ kinds,
                       const T* __restrict__ D, const double* __restrict__ weights, const T* __restrict__ ell, const T* __restrict__ top, const T* __restrict__ top_lo, const T* __restrict__ norm,
                       const T* __restrict__ off, const T* __restrict__ g_ell, T* __restrict__ slope, Call call, Index first_n, int first_c, int channels) {
    extern __shared__ double shared[];
    T* const weight = reinterpret_cast<T*>(shared);
    T* const sums = weight_table(call, weight);
    const int tiles = tiles_of(windows_of(call, centres, 0)), groups = (channels + 7) / 8;
    const Index image = blockIdx.x / (tiles * groups), n = first_n + image;
    const Map out = windows_of(call, centres, n), in = pixels_of(call, labels, n);
    const Place p = place(call, out, kinds, n, blockIdx.x % tiles);
    const bool window = p.label >= 0;
    Merge<T> merge;
    T g_D = 0, scale = 0, target = 0;
    Merged<T> m(0, 0);
    const T share = T(call.alpha) / call.C;
    if (window) {
        merge = Merge<T>(D[p.at], weights ? weights + p.at : nullptr);
        g_D = is_finite(ell[p.at]) ? g_ell[p.at] * merge.inverse : not_a_number<T>();
        m = Merged<T>(top[p.at], top_lo[p.at]);
        scale = T(1) / norm[p.at];
        target = T(call.alpha) * (call.C - 1) / call.C - off[p.at];
    }
    const int begin = blockIdx.x / tiles % groups * 8, end = min(begin + 8, channels);
    for (int k = begin; k < end; k += G) {
        T z[G], near[G];
        pool<T, G>(call, out, in, p, Logits<X, T, G>(call, logits, n, first_c + k), weight, sums, z, near);
        if (window)
            for (int g = 0; g < G; ++g) {
                const T residual = first_c + k + g == p.label ? target : Gap<T>(merge(near[g], z[g]), m).exponential() * scale - share;
                if (k + g < end) slope[((image * channels + k + g) * call.rows + p.a) * call.columns + p.b] = residual * g_D;
            }
    }
}

// x_bar = A(z_bar / D) of (13): the same pooling, now of what the windows send; 0 at ignored pixels.
template <typename X, typename T, int G>
__global__ void gather(const T* __restrict__ slope, const int* __restrict__ labels, const int* __restrict__ centres, const int* __restrict__ kinds,
                       X* __restrict__ grad, Call call, Index first_n, int first_c, int channels) {
    extern __shared__ double shared[];
    T* const weight = reinterpret_cast<T*>(shared);
    T* const sums = weight_table(call, weight);
    const int tiles = tiles_of(pixels_of(call, labels, 0)), groups = (channels + 7) / 8;
    const Index image = blockIdx.x / (tiles * groups), n = first_n + image;
    const Map out = pixels_of(call, labels, n), in = windows_of(call, centres, n);
    const Place p = place(call, out, kinds, n, blockIdx.x % tiles);
    const Index plane = (Index)call.rows * call.columns;
    const int begin = blockIdx.x / tiles % groups * 8, end = min(begin + 8, channels);
    for (int k = begin; k < end; k += G) {
        T z[G], near[G];
        pool<T, G>(call, out, in, p, Planes<T>(slope + (image * channels + k) * plane, plane, call.columns, channels - 1 - k), weight, sums, z, near);
        if (p.a < call.H && p.b < call.W)
            for (int g = 0; g < G; ++g)
                if (k + g < end) narrow(z[g], grad[n * call.grad_n + (first_c + k + g) * call.grad_c + p.a * call.grad_h + p.b * call.grad_w]);
    }
}
