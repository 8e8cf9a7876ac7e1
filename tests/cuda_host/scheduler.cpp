// Runs one launch of a kernel on one OS thread. Each CUDA thread is a fiber that is left only where it waits, at a
// barrier or a warp operation, so a run can be repeated exactly, in whatever order of threads and blocks is asked
// for. A barrier that some thread of the block never reaches is an error with its line, not a hang.
//
// ThreadSanitizer is told what CUDA promises and no more: the launch comes before all threads and after it they
// are done; a barrier orders the threads of its block; nothing orders two blocks, and a shuffle orders nothing.
#include <stdio.h>
#include <ucontext.h>

#include <memory>
#include <string>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "host.h"

#if defined(HOST_ADDRESS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FOR_ADDRESS(...) __VA_ARGS__
#else
#define FOR_ADDRESS(...)
#endif
#if defined(HOST_THREAD)
#include <sanitizer/tsan_interface.h>
#define FOR_THREAD(...) __VA_ARGS__
#else
#define FOR_THREAD(...)
#endif

namespace {
using host::Index3;
constexpr size_t STACK = 96 << 10, ARENA = 64 << 10, RED_ZONE = 64;
constexpr unsigned WARP = 32;

enum class State { runs, at_barrier, in_warp, done };

struct Fiber {
    ucontext_t context;
    char* stack = nullptr;
    Index3 index;
    unsigned id = 0, mask = 0, from = 0;
    State state = State::runs;
    int line = 0, vote = 0, votes = 0, barriers = 0;
    unsigned long long sends = 0, receives = 0;
    void* tsan = nullptr;
    void* fake_stack = nullptr;
};

struct Launch {
    Index3 grid, block, here;
    size_t dynamic;
    void (*body)(void**);
    void** arguments;
};

Launch launch;
std::vector<Fiber> fibers;
Fiber* current;
ucontext_t home;
char* arena;
size_t arena_used;
struct { const void* key; char* place; } variables[16];  // of the current block; a fiber allocates nothing
size_t variable_count;
std::string error;
std::vector<std::unique_ptr<char[]>> memory;  // stacks and arenas
[[maybe_unused]] void *home_tsan, *home_fake_stack;
[[maybe_unused]] const void* home_stack;
[[maybe_unused]] size_t home_stack_size;
[[maybe_unused]] std::vector<void*> finished;  // ThreadSanitizer's handles of the block before
[[maybe_unused]] char barrier_token[2], end_token, dynamic_key;

void leave() {  // from a fiber to the scheduler
    Fiber& fiber = *current;
    FOR_ADDRESS(__sanitizer_start_switch_fiber(fiber.state == State::done ? nullptr : &fiber.fake_stack, home_stack, home_stack_size);)
    FOR_THREAD(__tsan_switch_to_fiber(home_tsan, __tsan_switch_to_fiber_no_sync);)
    swapcontext(&fiber.context, &home);
    FOR_ADDRESS(__sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);)
}

void begin() {
    FOR_ADDRESS(__sanitizer_finish_switch_fiber(nullptr, &home_stack, &home_stack_size);)
    launch.body(launch.arguments);
    FOR_THREAD(__tsan_release(&end_token);)
    current->state = State::done;
    leave();
}

void resume(Fiber& fiber) {
    current = &fiber;
    FOR_ADDRESS(__sanitizer_start_switch_fiber(&home_fake_stack, fiber.stack, STACK);)
    FOR_THREAD(__tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);)
    swapcontext(&home, &fiber.context);
    FOR_ADDRESS(__sanitizer_finish_switch_fiber(home_fake_stack, nullptr, nullptr);)
}

// Lets the block pass its barrier if every thread waits at the same one.
bool pass_barrier() {
    int votes = 0;
    for (const Fiber& f : fibers) {
        if (f.state != State::at_barrier || f.line != fibers[0].line) return false;
        votes += f.vote;
    }
    for (Fiber& f : fibers) f.votes = votes, f.state = State::runs;
    return true;
}

// Lets the lanes of `first`'s warp that its mask names pass, if they have all come with the same mask to the same line.
bool pass_warp(Fiber& first) {
    Fiber* const lanes = &fibers[first.id / WARP * WARP];
    const unsigned mask = first.mask, count = std::min<size_t>(WARP, fibers.size() - (lanes - fibers.data()));
    for (unsigned l = 0; l < WARP; ++l)
        if (mask >> l & 1)
            if (l >= count || lanes[l].state != State::in_warp || lanes[l].mask != mask || lanes[l].line != first.line) return false;
    for (unsigned l = 0; l < count; ++l)
        if (mask >> l & 1) {
            const unsigned from = lanes[l].from < WARP ? lanes[l].from : l;  // out of the warp: one's own, as CUDA has it
            lanes[l].receives = mask >> from & 1 ? lanes[from].sends : ~0ull;
            lanes[l].state = State::runs;
        }
    return true;
}

// 0: as numbered; 1: backwards; any other number: shuffled by it.
std::vector<unsigned> ordered(unsigned n, unsigned order) {
    std::vector<unsigned> v(n);
    for (unsigned i = 0; i < n; ++i) v[i] = order == 1 ? n - 1 - i : i;
    if (order > 1)
        for (unsigned i = n; i > 1; --i) {
            order = order * 1103515245u + 12345u;
            std::swap(v[i - 1], v[order / 65536 % i]);
        }
    return v;
}

// Memory is used again by the next block, but for ThreadSanitizer, which would see two blocks at one address.
char* take(size_t slot, size_t bytes) {
    FOR_THREAD(memory.emplace_back(new char[bytes]); return memory.back().get();)
    if (memory.size() <= slot) memory.resize(slot + 1);
    if (!memory[slot]) memory[slot].reset(new char[bytes]);
    FOR_ADDRESS(__asan_unpoison_memory_region(memory[slot].get(), bytes);)
    return memory[slot].get();
}

void run_block(const std::vector<unsigned>& turns) {
    arena = take(0, ARENA);
    arena_used = 0;
    variable_count = 0;
    memset(arena, 0xff, ARENA);  // shared memory starts as NaN and -1
    FOR_ADDRESS(__asan_poison_memory_region(arena, ARENA);)
    const Index3 size = launch.block;
    fibers.assign(turns.size(), Fiber());
    for (unsigned i = 0; i < fibers.size(); ++i) {
        Fiber& f = fibers[i];
        f.id = i;
        f.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        f.stack = take(1 + i, STACK);
        getcontext(&f.context);
        f.context.uc_link = nullptr;
        f.context.uc_stack.ss_sp = f.stack;
        f.context.uc_stack.ss_size = STACK;
        makecontext(&f.context, begin, 0);
        FOR_THREAD(f.tsan = __tsan_create_fiber(0);)
    }
    FOR_THREAD(for (void* f : finished) __tsan_destroy_fiber(f); finished.clear();)
    for (bool moves = true; moves;) {
        for (unsigned i : turns)
            if (fibers[i].state == State::runs) resume(fibers[i]);
        moves = pass_barrier();
        for (Fiber& f : fibers)
            if (f.state == State::in_warp) moves |= pass_warp(f);
    }
    for (const Fiber& f : fibers) {
        if (f.state != State::done && error.empty()) {
            char text[200];
            snprintf(text, sizeof text, "%s on line %d is not reached by every thread it waits for: thread (%u, %u) of block %u stays there",
                     f.state == State::at_barrier ? "__syncthreads" : "a warp operation", f.line, f.index.x, f.index.y, launch.here.x);
            error = text;
        }
        FOR_THREAD(finished.push_back(f.tsan);)
    }
    FOR_ADDRESS(__asan_unpoison_memory_region(arena, ARENA);)
}
}  // namespace

// Kernels built with -fsanitize-coverage=trace-pc say so at the start of each of their basic blocks: a count of
// operations that no machine's speed goes into.
extern "C" {
int host_flush;  // whether subnormal numbers are 0, as CuPy has floats compiled
unsigned long long host_steps;
void __sanitizer_cov_trace_pc() { ++host_steps; }
}

namespace host {
Index3 thread_index() { return current->index; }
Index3 block_index() { return launch.here; }
Index3 block_size() { return launch.block; }
Index3 grid_size() { return launch.grid; }
unsigned lane() { return current->id % WARP; }

void* shared_variable(const void* key, size_t bytes) {
    for (size_t i = 0; i < variable_count; ++i)
        if (variables[i].key == key) return variables[i].place;
    char* const place = arena + arena_used;
    arena_used += (bytes + 15) / 16 * 16 + RED_ZONE;
    if (arena_used > ARENA || variable_count == std::size(variables)) {
        fputs("more shared memory than a block has\n", stderr);
        abort();
    }
    variables[variable_count++] = {key, place};
    FOR_ADDRESS(__asan_unpoison_memory_region(place, bytes);)
    return place;
}
void* dynamic_shared() { return shared_variable(&dynamic_key, launch.dynamic); }

int block_barrier(int vote, int line) {
    Fiber& f = *current;
    f.state = State::at_barrier, f.vote = vote, f.line = line;
    // Two tokens in turn: a thread may wait at its next barrier before another has left this one, and what it
    // did between the two must not be ordered before that other.
    [[maybe_unused]] char* const token = &barrier_token[f.barriers++ % 2];
    FOR_THREAD(__tsan_release(token);)
    leave();
    FOR_THREAD(__tsan_acquire(token);)
    return f.votes;
}

unsigned long long warp_exchange(unsigned mask, unsigned long long mine, unsigned from, int line) {
    Fiber& f = *current;
    f.state = State::in_warp, f.mask = mask, f.sends = mine, f.from = from, f.line = line;
    leave();
    return f.receives;
}

const char* run(const unsigned* grid, const unsigned* block, size_t shared, unsigned order, unsigned last, void (*body)(void**), void** arguments) {
    launch = {{grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, {}, shared, body, arguments};
    error.clear();
#if defined(__SSE__)
    const unsigned arithmetic = _mm_getcsr();  // of the caller; fibers take over what is set here
    _mm_setcsr(host_flush ? arithmetic | 0x8040 : arithmetic);  // results and operands
#endif
    FOR_THREAD(home_tsan = __tsan_get_current_fiber();)
    const auto turns = ordered(block[0] * block[1] * block[2], order);
    const unsigned blocks = grid[0] * grid[1] * grid[2], count = std::min(blocks, last);
    for (unsigned i : ordered(count, order)) {
        const unsigned b = blocks - count + i;
        launch.here = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
        if (error.empty()) run_block(turns);
    }
    FOR_THREAD(__tsan_acquire(&end_token); memory.clear();)
#if defined(__SSE__)
    _mm_setcsr(arithmetic);
#endif
    return error.empty() ? nullptr : error.c_str();
}
}  // namespace host
