// CUDA C++ as g++ is to understand it, for kernels that are to run on the CPU (scheduler.cpp runs them).
// What a kernel can't do here it can't do in the project: this list is what the kernels use, and no more.
// A kernel's own text is compiled with the sanitizer; scheduler.cpp is not, so nothing with a body that lives
// long may come in here.
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <type_traits>
#include <utility>

namespace host {
struct Index3 { unsigned x, y, z; };
Index3 thread_index();
Index3 block_index();
Index3 block_size();
Index3 grid_size();
unsigned lane();
void* shared_variable(const void* key, size_t bytes);  // of this block: the same memory for the same key
void* dynamic_shared();
int block_barrier(int vote, int line);                 // how many threads of the block voted yes
unsigned long long warp_exchange(unsigned mask, unsigned long long mine, unsigned from, int line);
const char* run(const unsigned* grid, const unsigned* block, size_t shared, unsigned order, unsigned last, void (*body)(void**), void** arguments);

template <typename T, typename Key> T& shared(Key) {
    static char key;
    return *static_cast<T*>(shared_variable(&key, sizeof(T)));
}
template <typename T> T shuffle(unsigned mask, T value, unsigned from, int line) {
    unsigned long long bits = 0;
    static_assert(sizeof value <= sizeof bits);
    memcpy(&bits, &value, sizeof value);
    bits = warp_exchange(mask, bits, from, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}

// A parameter list as text that host.py compares with the arguments: "p4" a pointer to elements of 4 bytes, "P4" to
// constant ones, "i8" an integer, "f8" a float, "s96" a struct of that many bytes.
template <typename A> void describe(char*& out) {
    char kind = 's';
    size_t size = sizeof(A);
    if constexpr (std::is_pointer_v<A>) {
        using Element = std::remove_pointer_t<A>;
        kind = std::is_const_v<Element> ? 'P' : 'p';
        size = sizeof(Element);
    } else if constexpr (std::is_integral_v<A>) kind = 'i';
    else if constexpr (std::is_floating_point_v<A>) kind = 'f';
    *out++ = kind;
    char digits[24];
    int n = 0;
    do digits[n++] = char('0' + size % 10); while (size /= 10);
    while (n > 0) *out++ = digits[--n];
    *out++ = ' ';
}
template <typename... A> const char* signature(void (*)(A...)) {
    static char text[1024];
    char* out = text;
    (describe<A>(out), ...);
    *out = 0;
    return text;
}
template <auto kernel, typename... A, size_t... I> void apply(void (*)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(arguments[I])...);
}
template <auto kernel, typename... A> void unpack(void (*f)(A...), void** arguments) { apply<kernel>(f, arguments, std::index_sequence_for<A...>{}); }
template <auto kernel> void body(void** arguments) { unpack<kernel>(kernel, arguments); }
}  // namespace host

// What Python finds in the library for each kernel.
#define HOST_EXPORT(name, ...)                                                                                      \
    namespace { constexpr auto name##_kernel = &__VA_ARGS__; }                                                      \
    extern "C" const char* name(const unsigned* grid, const unsigned* block, size_t shared, unsigned order, unsigned last, void** arguments) { \
        return host::run(grid, block, shared, order, last, host::body<name##_kernel>, arguments);                   \
    }                                                                                                               \
    extern "C" const char* name##_signature() { return host::signature(name##_kernel); }

#define __global__
#define __device__
#define __restrict__
#define threadIdx host::thread_index()
#define blockIdx host::block_index()
#define blockDim host::block_size()
#define gridDim host::grid_size()
#define __syncthreads() (void)host::block_barrier(0, __LINE__)
#define __syncthreads_count(vote) host::block_barrier((vote) != 0, __LINE__)
#define __shfl_xor_sync(mask, value, lanes) host::shuffle(mask, value, host::lane() ^ (lanes), __LINE__)
#define __shfl_down_sync(mask, value, lanes) host::shuffle(mask, value, host::lane() + (lanes), __LINE__)

using std::max;
using std::min;
inline unsigned __float_as_uint(float v) { unsigned bits; memcpy(&bits, &v, sizeof v); return bits; }
inline float __fmul_rn(float a, float b) { return a * b; }  // built with -ffp-contract=off
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __uint_as_float(unsigned bits) { float v; memcpy(&v, &bits, sizeof v); return v; }
