// A right port in C++, by a person who writes loops: a list of windows, each with a list of its members.
//
// The virtual functions are the steps that a mistake may change; cpp_ports.cpp overrides one of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cpp_files.hpp"

struct Member {
    long n, i, j;
    double w;
};

struct Window {
    long n, i, j, k;  // image, row and column of the centre, place in the map
    int label;
    double omega = 1, D = 0, ell = 0, ell_bar = 0;
    bool valid = true;
    std::vector<Member> members;
    std::vector<double> P;  // softmax of the merged vector; for probabilities the merged probability alone
};

class Port {
public:
    virtual ~Port() = default;

    void run(const std::string& in, const std::string& out) {
        Settings set(slurp(in + "/options.json"));
        logits = read_npy(in + "/logits.npy");
        labels = read_npy(in + "/labels.npy");
        upstream = read_npy(in + "/grad_output.npy");
        std::ifstream weights(in + "/pixel_weight.npy");
        if (weights) pixel_weight = read_npy(in + "/pixel_weight.npy");
        if (logits.shape.size() != 4) throw std::runtime_error("this program is for images");
        last = set.number("axis", 1) == -1 || set.number("axis", 1) == 3;
        N = labels.shape[0], H = labels.shape[1], W = labels.shape[2], C = logits.shape[last ? 3 : 1];
        r = static_cast<long>(set.number("kernel_size", 5)) / 2;
        s = static_cast<long>(set.number("stride", 1));
        sigma = set.number("sigma", 0);  // 0 is none
        p = set.number("p", 5);
        alpha = set.number("label_smoothing", 0);
        void_label = set.number("ignore_index", 1e9);
        class_weight = set.list("class_weight");
        counts = set.word("normalize", "weights") == "count";
        probabilities = set.word("space", "logits") == "probabilities";
        reduction = set.word("reduction", "mean");
        empty_is_nan = set.word("empty", "zero") == "nan";
        gradient = Npy{logits.type, logits.shape, std::vector<double>(logits.data.size())};

        build();
        if (probabilities) soften();
        for (Window& v : windows)
            if (v.valid) forward(v);
        const Npy value = combine();
        for (const Window& v : windows)
            if (v.valid) backward(v);
        if (probabilities) harden();
        write_npy(out + "/value.npy", value);
        write_npy(out + "/grad.npy", gradient);
    }

protected:
    Npy logits, labels, upstream, pixel_weight, gradient;
    long N, C, H, W, r, s;
    double sigma, p, alpha, void_label;
    std::vector<double> class_weight;
    bool last, counts, probabilities, empty_is_nan;
    std::string reduction;
    std::vector<Window> windows;
    std::vector<double> u;  // probabilities of all pixels, laid out as the logits are

    long place(long n, long c, long i, long j) const {
        return last ? ((n * H + i) * W + j) * C + c : ((n * C + c) * H + i) * W + j;
    }
    int label(long n, long i, long j) const { return static_cast<int>(labels.data[(n * H + i) * W + j]); }

    virtual long along(long n) const { return (n + s - 1) / s; }
    virtual double distance(long di, long dj) const { return std::max(std::labs(di), std::labs(dj)); }
    virtual bool joins(int mine, int other) const { return mine == other; }
    virtual double weight_at(const Window& v) const {
        double omega = class_weight.empty() ? 1 : class_weight.at(v.label);
        if (!pixel_weight.data.empty()) omega *= pixel_weight.data[(v.n * H + v.i) * W + v.j];
        return omega;
    }
    virtual double backward_weight(const Member& q) const { return q.w; }
    virtual double base() const {
        double B = 0;
        for (const Window& v : windows)
            if (v.valid) B += v.omega;
        return B;
    }
    virtual double arriving(long k) const { return upstream.data.size() > 1 ? upstream.data[k] : upstream.data[0]; }
    double target(const Window& v, long c) const { return (c == v.label ? 1 - alpha : 0) + alpha / C; }

    // The windows on the stride grid and the pixels that they read.
    void build() {
        for (long n = 0; n < N; ++n)
            for (long i = 0; i < along(H); ++i)
                for (long j = 0; j < along(W); ++j) {
                    Window v;
                    v.n = n, v.i = i * s, v.j = j * s, v.k = (n * along(H) + i) * along(W) + j;
                    v.label = label(n, v.i, v.j);
                    v.valid = v.label != void_label;
                    if (v.valid) v.omega = weight_at(v), v.valid = v.omega > 0;
                    if (v.valid) gather(v);
                    windows.push_back(v);
                }
    }
    void gather(Window& v) const {
        for (long i = std::max(0L, v.i - r); i <= std::min(H - 1, v.i + r); ++i)
            for (long j = std::max(0L, v.j - r); j <= std::min(W - 1, v.j + r); ++j) {
                if (!joins(v.label, label(v.n, i, j))) continue;
                const double d = distance(i - v.i, j - v.j);
                const double w = sigma > 0 ? std::exp(-d * d / (2 * sigma * sigma)) : 1;
                v.members.push_back({v.n, i, j, w});
                v.D += counts ? 1 : w;
            }
    }

    // softmax of C numbers that lie `step` apart
    static std::vector<double> softmax(const std::vector<double>& x, long from, long step, long C) {
        double top = x[from], sum = 0;
        for (long c = 1; c < C; ++c) top = std::max(top, x[from + c * step]);
        std::vector<double> P(C);
        for (long c = 0; c < C; ++c) sum += P[c] = std::exp(x[from + c * step] - top);
        for (double& each : P) each /= sum;
        return P;
    }
    void soften() {
        u.resize(logits.data.size());
        for (long q = 0; q < N * H * W; ++q) {
            const long n = q / (H * W), i = q / W % H, j = q % W;
            const std::vector<double> P = softmax(logits.data, place(n, 0, i, j), last ? 1 : H * W, C);
            for (long c = 0; c < C; ++c) u[place(n, c, i, j)] = P[c];
        }
    }
    // The gradient by the probabilities, one number a pixel and class, becomes that by the logits.
    void harden() {
        for (long q = 0; q < N * H * W; ++q) {
            const long n = q / (H * W), i = q / W % H, j = q % W;
            double mean = 0;
            for (long c = 0; c < C; ++c) {
                const double g = gradient.data[place(n, c, i, j)];
                if (g != 0) mean += u[place(n, c, i, j)] * g;  // what is not reached may be NaN
            }
            for (long c = 0; c < C; ++c) {
                double& g = gradient.data[place(n, c, i, j)];
                if (mean != 0) g = u[place(n, c, i, j)] * (g - mean);
            }
        }
    }

    void forward(Window& v) const {
        if (probabilities) return merge_probability(v);
        std::vector<double> z(C);
        for (const Member& q : v.members)
            for (long c = 0; c < C; ++c) z[c] += q.w * logits.data[place(q.n, c, q.i, q.j)];
        for (double& each : z) each /= v.D;
        const double top = *std::max_element(z.begin(), z.end());
        double sum = 0;
        for (double each : z) sum += std::exp(each - top);
        v.P.resize(C);
        for (long c = 0; c < C; ++c) {
            const double log_P = z[c] - top - std::log(sum);
            v.P[c] = std::exp(log_P);
            if (target(v, c) > 0) v.ell -= target(v, c) * log_P;
        }
    }
    virtual void merge_probability(Window& v) const {
        double merged = 0;
        for (const Member& q : v.members) merged += q.w * u[place(q.n, v.label, q.i, q.j)];
        v.P = {merged / v.D};
        v.ell = -std::log(v.P[0]);
    }

    void backward(const Window& v) {
        for (const Member& q : v.members)
            if (probabilities) {
                gradient.data[place(q.n, v.label, q.i, q.j)] += v.ell_bar * probability_slope(v, q);
            } else {
                for (long c = 0; c < C; ++c)
                    gradient.data[place(q.n, c, q.i, q.j)] +=
                        v.ell_bar * (v.P[c] - target(v, c)) / v.D * backward_weight(q);
            }
    }
    virtual double probability_slope(const Window& v, const Member& q) const {
        return -backward_weight(q) / v.D / v.P[0];
    }

    // The value, and in every window ell_bar.
    Npy combine() {
        Npy value{logits.type, {}, {0}};
        if (reduction == "none") {
            value.shape = {N, along(H), along(W)};
            value.data.assign(windows.size(), 0);
            for (Window& v : windows)
                if (v.valid) value.data[v.k] = v.omega * v.ell, v.ell_bar = arriving(v.k) * v.omega;
            return value;
        }
        double top = 0, S = 0, tied = 0;
        bool any = false;
        for (const Window& v : windows)
            if (v.valid) any = true, top = std::max(top, v.ell);
        if (!any && empty_is_nan) value.data[0] = std::nan("");
        if (top == 0) return value;
        const double B = reduction == "mean" ? base() : 1;
        const double eps = logits.type == "<f4" ? 1.2e-7 : 2.2e-16;
        for (const Window& v : windows) {
            if (v.valid && v.ell >= top * (1 - 16 * eps)) tied += v.omega;
            if (v.valid && std::isfinite(p)) S += v.omega * std::pow(v.ell / top, p);
        }
        const double root = std::isfinite(p) ? std::pow(S / B, 1 / p) : 1;
        for (Window& v : windows) {
            if (!v.valid) continue;
            if (std::isfinite(p)) v.ell_bar = arriving(0) * v.omega * std::pow(v.ell / top, p - 1) / S * root;
            else if (v.ell >= top * (1 - 16 * eps)) v.ell_bar = arriving(0) * v.omega / tied;
        }
        value.data[0] = top * root;
        return value;
    }
};
