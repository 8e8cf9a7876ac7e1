// Probability space, (6), (14) and (18): pixels, merge, send, receive, spread. The other .cu files come before this
// text. One number a pixel is pooled: u, its own class's probability, and beside it what u lacks of 1.

// m and sum of exp(x - m) of each pixel, off = 1 - u, u, and log u.
template <typename X, typename T>
__global__ void pixels(const X* __restrict__ logits, const int* __restrict__ labels, T* __restrict__ top, T* __restrict__ norm, T* __restrict__ off,
                       T* __restrict__ u, T* __restrict__ log_u, Call call) {
    const Map map = pixels_of(call, labels, 0);
    const int tiles = tiles_of(map);
    const Index n = blockIdx.x / tiles;
    const Place p = place(call, pixels_of(call, labels, n), nullptr, n, blockIdx.x % tiles);
    if (p.label < 0) return;  // an ignored pixel is never read
    Softmax<T> f;
    for (int c = 0; c < call.C; ++c) f.add(Merged<T>(Logits<X, T, 1>(call, logits, n, c).logit(0, p.a, p.b), 0), c == p.label);
    const bool no_class = p.label >= call.C;
    top[p.at] = f.m.hi + f.m.lo;
    norm[p.at] = f.norm();
    off[p.at] = no_class ? not_a_number<T>() : f.off();
    u[p.at] = no_class ? not_a_number<T>() : f.own();
    log_u[p.at] = no_class ? not_a_number<T>() : -f.loss(0);
}

// A sum of w u from here on has lost nothing by terms that underflow, and its reciprocal is far from overflow.
__device__ inline float sure(float) { return 1e-30f; }
__device__ inline double sure(double) { return 1e-290; }

template <typename T> struct Chances : AsItIs<T> {
    const T *off, *u;
    int columns;
    __device__ Chances(const T* off, const T* u, int columns) : off(off), u(u), columns(columns) {}
    __device__ T operator()(int g, int a, int b) const { return (g == 0 ? off : u)[(Index)a * columns + b]; }
};

// log w(d), (1).
template <typename T> __device__ T log_weight(const Call& call, int d) {
    return call.sigma > 0 ? T(-0.5 * (d / call.sigma) * (d / call.sigma)) : T(0);
}

// The logarithm of the sum of w u over the group from logarithms: O(r^2), where u is too small to be added up.
template <typename T>
__device__ T log_pooled_by_cells(const Call& call, const Map& out, const Map& in, const Place& p, const T* log_u) {
    const int i = p.a * out.step_h, j = p.b * out.step_w;
    const int a_0 = max(0, i - call.reach_h), a_1 = min(in.rows - 1, i + call.reach_h);
    const int b_0 = max(0, j - call.reach_w), b_1 = min(in.columns - 1, j + call.reach_w);
    T largest = minus_infinity<T>(), sum = 0;
    for (int pass = 0; pass < 2; ++pass)  // the largest term first, so that no term overflows and not all underflow
        for (int a = a_0; a <= a_1; ++a)
            for (int b = b_0; b <= b_1; ++b)
                if (in.label[(Index)a * in.columns + b] == p.label) {
                    const T term = log_weight<T>(call, max(abs(a - i), abs(b - j))) + log_u[(Index)a * in.columns + b];
                    if (pass > 0) sum += exp(term - (is_finite(largest) ? largest : T(0)));
                    else if (term > largest) largest = term;
                }
    return (is_finite(largest) ? largest : T(0)) + log(sum);
}

// ell_p of (18) and log_pooled, the logarithm of the sum of w u over the group.
template <typename T>
__global__ void merge(const int* __restrict__ labels, const int* __restrict__ centres, const int* __restrict__ kinds, const T* __restrict__ D,
                      const T* __restrict__ weights, const T* __restrict__ off, const T* __restrict__ u, const T* __restrict__ log_u, T* __restrict__ ell,
                      T* __restrict__ log_pooled, Call call) {
    extern __shared__ double shared[];
    T* const weight = reinterpret_cast<T*>(shared);
    T* const sums = weight_table(call, weight);
    const int tiles = tiles_of(windows_of(call, centres, 0));
    const Index n = blockIdx.x / tiles;
    const Map out = windows_of(call, centres, n), in = pixels_of(call, labels, n);
    const Place p = place(call, out, kinds, n, blockIdx.x % tiles);
    const Index first = n * call.H * call.W;
    T z[2], near[2];  // sums of w off and of w u
    pool<T, 2>(call, out, in, p, Chances<T>(off + first, u + first, call.W), weight, sums, z, near);
    if (p.a >= out.rows || p.b >= out.columns) return;
    if (p.label < 0) {
        ell[p.at] = 0;
        return;
    }
    const T missing = z[0] / weights[p.at];
    if (missing < T(0.5)) {
        const T log_mean = log1p(-missing);
        log_pooled[p.at] = log(weights[p.at]) + log_mean;
        ell[p.at] = -log(weights[p.at] / D[p.at]) - log_mean;
    } else {
        log_pooled[p.at] = z[1] < sure(T()) ? log_pooled_by_cells<T>(call, out, in, p, log_u + first) : log(z[1]);
        ell[p.at] = log(D[p.at]) - log_pooled[p.at];
    }
}

// What each window sends into the pooling of (14), g over its sum of w u: sent (N, rows, columns). Where that is too
// large to be added up it is +inf, which asks every pixel that it reaches to go by cells.
template <typename T>
__global__ void send(const int* __restrict__ centres, const T* __restrict__ ell, const T* __restrict__ log_pooled, const T* __restrict__ g_ell,
                     T* __restrict__ sent, Call call) {
    const int tiles = tiles_of(windows_of(call, centres, 0));
    const Index n = blockIdx.x / tiles;
    const Place p = place(call, windows_of(call, centres, n), nullptr, n, blockIdx.x % tiles);
    if (p.label < 0) return;  // nobody reads there
    const T g = g_ell[p.at], share = g * exp(-log_pooled[p.at]);
    const bool moderate = fabs(share) <= 1 / sure(T());
    sent[p.at] = !is_finite(ell[p.at]) ? not_a_number<T>() : g == 0 ? T(0) : moderate || g != g ? share : -minus_infinity<T>();
}

// R_q of (14) from logarithms: O(r^2).
template <typename T>
__device__ T received_by_cells(const Call& call, const Map& in, const Place& p, T log_u, const T* log_pooled, const T* g_ell) {
    const int a_0 = max(0, (p.a - call.reach_h + in.step_h - 1) / in.step_h), a_1 = min(in.rows - 1, (p.a + call.reach_h) / in.step_h);
    const int b_0 = max(0, (p.b - call.reach_w + in.step_w - 1) / in.step_w), b_1 = min(in.columns - 1, (p.b + call.reach_w) / in.step_w);
    T sum = 0;
    for (int a = a_0; a <= a_1; ++a)
        for (int b = b_0; b <= b_1; ++b) {
            const Index at = (Index)a * in.columns + b;
            if (in.label[at] != p.label || g_ell[at] == 0) continue;
            const T log_w = log_weight<T>(call, max(abs(a * in.step_h - p.a), abs(b * in.step_w - p.b)));
            sum += g_ell[at] * exp(log_w + log_u - log_pooled[at]);
        }
    return sum;
}

// R_q of (14): what the windows that hold q send it, R (N, H, W).
template <typename T>
__global__ void receive(const int* __restrict__ labels, const int* __restrict__ centres, const int* __restrict__ kinds, const T* __restrict__ log_u,
                        const T* __restrict__ log_pooled, const T* __restrict__ g_ell, const T* __restrict__ sent, T* __restrict__ R, Call call) {
    extern __shared__ double shared[];
    T* const weight = reinterpret_cast<T*>(shared);
    T* const sums = weight_table(call, weight);
    const int tiles = tiles_of(pixels_of(call, labels, 0));
    const Index n = blockIdx.x / tiles, first = n * call.rows * call.columns;
    const Map out = pixels_of(call, labels, n), in = windows_of(call, centres, n);
    const Place p = place(call, out, kinds, n, blockIdx.x % tiles);
    T z[1], near[1];
    pool<T, 1>(call, out, in, p, Numbers<T>(sent + first, call.columns), weight, sums, z, near);
    if (p.label < 0) return;
    const T half = exp(log_u[p.at] / 2);  // of u, as a power: u may underflow where its product with z does not
    if (z[0] == 0) R[p.at] = 0;
    else if (is_finite(z[0]) || z[0] != z[0]) R[p.at] = z[0] * half * half;
    else R[p.at] = received_by_cells<T>(call, in, p, log_u[p.at], log_pooled + first, g_ell + first);
}

// x_bar_q = R_q (u_q - onehot(y_q)), (14); 0 where nothing is sent, even beside NaN.
template <typename X, typename T>
__global__ void spread(const X* __restrict__ logits, const int* __restrict__ labels, const T* __restrict__ top, const T* __restrict__ norm,
                       const T* __restrict__ off, const T* __restrict__ R, X* __restrict__ grad, Call call) {
    const int tiles = tiles_of(pixels_of(call, labels, 0));
    const Index n = blockIdx.x / tiles;
    const Place p = place(call, pixels_of(call, labels, n), nullptr, n, blockIdx.x % tiles);
    if (p.a >= call.H || p.b >= call.W) return;
    const T sent = p.label >= 0 ? R[p.at] : T(0);
    for (int c = 0; c < call.C; ++c) {
        T x_bar = 0;
        if (sent != 0) {
            const T u = exp(Logits<X, T, 1>(call, logits, n, c).logit(0, p.a, p.b) - top[p.at]) / norm[p.at];
            x_bar = sent * (c == p.label ? -off[p.at] : u);
        }
        narrow(x_bar, grad[n * call.grad_n + c * call.grad_c + p.a * call.grad_h + p.b * call.grad_w]);
    }
}
