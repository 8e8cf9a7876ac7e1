// Stage 3, (8), (9) and (11): losses of windows to one number, and each window's share back. kernels.cu comes before
// this text. All is in double. A block adds what its threads have found in an order that does not depend on when they
// run, and one block adds what the blocks have found: so every run gives the same bits.

constexpr int THREADS = 256;  // of a block here

struct Add {
    __device__ static double of(double a, double b) { return a + b; }
};
struct Largest {  // NaN if any is
    __device__ static double of(double a, double b) { return a != a || a > b ? a : b; }
};

// What the numbers of all threads come to. Every thread of a block must come here, and each is told.
template <typename Fold> __device__ double of_block(double mine) {
    __shared__ double found[THREADS];
    found[threadIdx.x] = mine;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) found[threadIdx.x] = Fold::of(found[threadIdx.x], found[threadIdx.x + half]);
        __syncthreads();
    }
    const double all = found[0];
    __syncthreads();  // before `found` is written again
    return all;
}

// The windows as they are in memory: (N, *grid), omega null where each valid window weighs 1.
template <typename T> struct Windows {
    const T* ell;
    const bool* valid;
    const double* omega;
    __device__ double weight(Index i) const { return !valid[i] ? 0 : omega ? omega[i] : 1; }
    __device__ double loss(Index i) const {  // a weight that isn't allowed (check=False) leaves no plausible number
        const double w = weight(i);
        return w != w ? w : double(ell[i]);
    }
};

// omega (ell / max ell)^p; at p = inf omega where ell ties with the maximum, (9), else 0.
__device__ inline double power(double weight, double ell, double maximum, double p, double epsilon) {
    if (!is_finite(p)) return ell >= (1 - 16 * epsilon) * maximum ? weight : 0;
    const double r = ell == double(-minus_infinity<float>()) ? 1 : ell / (maximum == 0 ? 1 : maximum);
    return weight == 0 || r == 0 ? 0 : weight * pow(r, p);
}

// Of each block the largest ell, the sum of weights and the number of windows: partial (3, blocks).
template <typename T>
__global__ void tops(const T* __restrict__ ell, const bool* __restrict__ valid, const double* __restrict__ omega, Index count, double* __restrict__ partial) {
    const Windows<T> windows{ell, valid, omega};
    double largest = minus_infinity<double>(), weight = 0, seen = 0;
    for (Index i = (Index)blockIdx.x * THREADS + threadIdx.x; i < count; i += (Index)gridDim.x * THREADS) {
        largest = Largest::of(largest, windows.loss(i));
        weight += windows.weight(i);
        seen += windows.valid[i];
    }
    largest = of_block<Largest>(largest);
    weight = of_block<Add>(weight);
    seen = of_block<Add>(seen);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = largest;
        partial[gridDim.x + blockIdx.x] = weight;
        partial[2 * gridDim.x + blockIdx.x] = seen;
    }
}

// The same of all: sums (maximum, S, sum of weights), but for S, and M.
extern "C" __global__ void fold_tops(const double* __restrict__ partial, int blocks, double* __restrict__ sums, Index* __restrict__ M) {
    double largest = minus_infinity<double>(), weight = 0, seen = 0;
    for (int i = threadIdx.x; i < blocks; i += THREADS) {
        largest = Largest::of(largest, partial[i]);
        weight += partial[blocks + i];
        seen += partial[2 * blocks + i];
    }
    largest = of_block<Largest>(largest);
    weight = of_block<Add>(weight);
    seen = of_block<Add>(seen);
    if (threadIdx.x == 0) {
        sums[0] = largest == minus_infinity<double>() ? 0 : largest;  // there is no window
        sums[2] = weight;
        *M = Index(seen);
    }
}

// Of each block S, the sum of powers: partial (blocks).
template <typename T>
__global__ void powers(const T* __restrict__ ell, const bool* __restrict__ valid, const double* __restrict__ omega, Index count, double p, double epsilon,
                       const double* __restrict__ sums, double* __restrict__ partial) {
    const Windows<T> windows{ell, valid, omega};
    double S = 0;
    for (Index i = (Index)blockIdx.x * THREADS + threadIdx.x; i < count; i += (Index)gridDim.x * THREADS)
        S += power(windows.weight(i), windows.loss(i), sums[0], p, epsilon);
    S = of_block<Add>(S);
    if (threadIdx.x == 0) partial[blockIdx.x] = S;
}

extern "C" __global__ void fold_powers(const double* __restrict__ partial, int blocks, double* __restrict__ sums) {
    double S = 0;
    for (int i = threadIdx.x; i < blocks; i += THREADS) S += partial[i];
    S = of_block<Add>(S);
    if (threadIdx.x == 0) sums[1] = S;
}

// g of (11) times the upstream gradient; 0 where there is no window. B is 1 where no sum of weights is given.
template <typename T>
__global__ void shares(const T* __restrict__ ell, const bool* __restrict__ valid, const double* __restrict__ omega, Index count, double p, double epsilon,
                       const double* __restrict__ maximum, const double* __restrict__ S, const double* __restrict__ weights, const double* __restrict__ upstream, T* __restrict__ g) {
    const Windows<T> windows{ell, valid, omega};
    const double B = weights && *weights != 0 ? *weights : 1;
    for (Index i = (Index)blockIdx.x * THREADS + threadIdx.x; i < count; i += (Index)gridDim.x * THREADS) {
        const double w = windows.weight(i);
        double share = 0;
        if (w == 0) share = 0;
        else if (p == 1) share = w / B;  // a NaN or infinite ell stays with its own window
        else if (!is_finite(*maximum)) share = not_a_number<double>();
        else if (*maximum != 0) {
            share = power(w, ell[i], *maximum, is_finite(p) ? p - 1 : p, epsilon) / *S;
            if (is_finite(p)) share *= pow(*S / B, 1 / p);
        }
        g[i] = valid[i] ? T(share * *upstream) : T(0);
    }
}
