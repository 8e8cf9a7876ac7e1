// The locally adaptive learning loss and its gradient in C++17, as a program that lalref can judge.
//
// A port to be judged, and a port to read: the standard library alone. 2-D images, textbook arithmetic.
//
//     g++ -O2 -std=c++17 -o cpp_port examples/ports/cpp_port.cpp
//     lalref verify --command './cpp_port {case} {out}' --takes kernel_size,sigma,stride,space,normalize,
//         p,label_smoothing,ignore_index,class_weight,reduction,pixel_weight,grad_output    (in one line)
//
// It reads logits.npy, labels.npy, grad_output.npy, options.json and, where there is one, pixel_weight.npy
// from the first folder, and writes value.npy and grad.npy into the second.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using std::string;
using std::vector;

// ---- files

template <class T>
struct Array {
    vector<size_t> shape;
    vector<T> data;
};

string read_file(const string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("there is no file " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

// "<f4" in the header of a .npy file: the type of its numbers.
string type_of(const string& npy) {
    size_t at = npy.find("'descr': '") + 10;
    return npy.substr(at, npy.find('\'', at) - at);
}

template <class From, class T>
void convert(const string& bytes, vector<T>& to) {
    vector<From> from(bytes.size() / sizeof(From));
    std::memcpy(from.data(), bytes.data(), bytes.size());
    to.assign(from.begin(), from.end());
}

template <class T>
Array<T> load(const string& path) {
    const string npy = read_file(path), type = type_of(npy);
    const size_t header = 10 + static_cast<uint8_t>(npy[8]) + 256 * static_cast<uint8_t>(npy[9]);
    Array<T> array;
    const size_t open = npy.find("'shape': (") + 10;
    std::istringstream shape(npy.substr(open, npy.find(')', open) - open));
    for (string item; std::getline(shape, item, ',');)
        if (item.find_first_of("0123456789") != string::npos) array.shape.push_back(std::stoul(item));
    const string bytes = npy.substr(header);
    if (type == "<f4") convert<float>(bytes, array.data);
    else if (type == "<f8") convert<double>(bytes, array.data);
    else if (type == "<i8") convert<int64_t>(bytes, array.data);
    else if (type == "|u1") convert<uint8_t>(bytes, array.data);
    else throw std::runtime_error(path + " is of type " + type + ", which this port does not read");
    return array;
}

template <class T>
void save(const string& path, const Array<T>& array) {
    std::ostringstream header;
    header << "{'descr': '<f" << sizeof(T) << "', 'fortran_order': False, 'shape': (";
    for (size_t n : array.shape) header << n << ",";
    header << "), }";
    string text = header.str();
    text.resize((text.size() + 11 + 63) / 64 * 64 - 11, ' ');  // so that the data begin at a multiple of 64
    text += '\n';
    std::ofstream file(path, std::ios::binary);
    file << "\x93NUMPY" << '\1' << '\0' << static_cast<char>(text.size() % 256) << static_cast<char>(text.size() / 256) << text;
    file.write(reinterpret_cast<const char*>(array.data.data()), array.data.size() * sizeof(T));
}

// ---- options

struct Options {
    string text;

    // What stands behind the name: up to the next comma that is not inside a list.
    string word(const string& name) const {
        size_t at = text.find('"' + name + "\": ");
        if (at == string::npos) throw std::runtime_error("options.json has no " + name);
        at += name.size() + 4;
        const char* ends = text[at] == '[' ? "]" : ",}";
        string found = text.substr(at, text.find_first_of(ends, at) - at);
        found.erase(std::remove_if(found.begin(), found.end(), [](char c) { return c == '"' || c == '['; }), found.end());
        return found;
    }
    double number(const string& name) const {
        if (text.find('"' + name + "\": [") != string::npos) throw std::runtime_error("this port takes one " + name);
        return std::stod(word(name));  // reads inf too
    }
    bool none(const string& name) const { return word(name) == "null"; }
    vector<double> list(const string& name) const {
        vector<double> numbers;
        std::istringstream items(word(name));
        for (string item; std::getline(items, item, ',');) numbers.push_back(std::stod(item));
        return numbers;
    }
};

// ---- the loss

template <class T>
struct Loss {
    Array<T> x;  // (N, C, H, W)
    vector<int64_t> y;  // (N, H, W)
    vector<T> omega;  // (N, H, W), 0 where there is no valid window
    Options o;
    long N, C, H, W, r, stride;
    T sigma;  // 0: every weight is 1

    long pixel(long n, long i, long j) const { return (n * H + i) * W + j; }
    T& at(vector<T>& u, long q, long c) const { return u[(q / (H * W) * C + c) * H * W + q % (H * W)]; }

    // Calls f(p, q, w) for every pixel q and every p whose window it may be in: of one class, near enough.
    template <class F>
    void each_pair(F f) const {
        for (long n = 0; n < N; n++)
            for (long i = 0; i < H; i++)
                for (long j = 0; j < W; j++)
                    for (long k = std::max(0L, i - r); k <= std::min(H - 1, i + r); k++)
                        for (long l = std::max(0L, j - r); l <= std::min(W - 1, j + r); l++) {
                            const long p = pixel(n, i, j), q = pixel(n, k, l);
                            if (y[p] != y[q] || omega[p] <= 0) continue;
                            const T d = static_cast<T>(std::max(std::labs(i - k), std::labs(j - l)));
                            f(p, q, sigma > 0 ? std::exp(-(d / sigma) * (d / sigma) / 2) : T(1));
                        }
    }

    // log softmax of the C numbers of a pixel
    vector<T> log_softmax(vector<T>& u, long q) const {
        vector<T> a(C);
        for (long c = 0; c < C; c++) a[c] = at(u, q, c);
        const T top = *std::max_element(a.begin(), a.end());
        T s = 0;
        for (T v : a) s += std::exp(v - top);
        for (T& v : a) v -= top + std::log(s);
        return a;
    }

    void run(const string& out, const Array<double>& grad_output) {
        const long Q = N * H * W;
        const bool count = o.word("normalize") == "count", merged = o.word("space") == "logits";
        const T alpha = static_cast<T>(o.number("label_smoothing"));
        vector<T> D(Q), ell(Q), ell_bar(Q), z(x.data.size()), x_bar(x.data.size()), own(Q), S(Q);
        each_pair([&](long p, long, T w) { D[p] += count ? 1 : w; });

        // stages 1 and 2
        vector<vector<T>> log_u(Q);
        if (merged) {
            each_pair([&](long p, long q, T w) {
                for (long c = 0; c < C; c++) at(z, p, c) += w * at(x.data, q, c) / D[p];
            });
            for (long p = 0; p < Q; p++)
                if (omega[p] > 0) {
                    log_u[p] = log_softmax(z, p);
                    for (long c = 0; c < C; c++) ell[p] -= target(p, c, alpha) * log_u[p][c];
                }
        } else {
            for (long q = 0; q < Q; q++)
                if (y[q] >= 0 && y[q] < C) log_u[q] = log_softmax(x.data, q), own[q] = log_u[q][y[q]];
            each_pair([&](long p, long q, T w) { S[p] += w * std::exp(own[q]); });
            for (long p = 0; p < Q; p++)
                if (omega[p] > 0) ell[p] = std::log(D[p]) - std::log(S[p]);
        }

        const Array<T> value = pooled(ell, ell_bar, grad_output);

        // the same stages backwards
        if (merged) {
            vector<T> z_bar(x.data.size());
            for (long p = 0; p < Q; p++)
                if (omega[p] > 0)
                    for (long c = 0; c < C; c++)
                        at(z_bar, p, c) = ell_bar[p] * (std::exp(log_u[p][c]) - target(p, c, alpha)) / D[p];
            each_pair([&](long p, long q, T w) {
                for (long c = 0; c < C; c++) at(x_bar, q, c) += w * at(z_bar, p, c);
            });
        } else {
            vector<T> R(Q);
            each_pair([&](long p, long q, T w) { R[q] += ell_bar[p] * w * std::exp(own[q]) / S[p]; });
            for (long q = 0; q < Q; q++)
                if (R[q] != 0)
                    for (long c = 0; c < C; c++) at(x_bar, q, c) = R[q] * (std::exp(log_u[q][c]) - (c == y[q]));
        }
        save(out + "/value.npy", value);
        save(out + "/grad.npy", Array<T>{x.shape, x_bar});
    }

    T target(long p, long c, T alpha) const { return (1 - alpha) * (c == y[p]) + alpha / C; }

    // stage 3: the value, and into ell_bar each window's share of the gradient
    Array<T> pooled(const vector<T>& ell, vector<T>& ell_bar, const Array<double>& grad_output) const {
        if (o.word("reduction") == "none") {
            const long h = (H + stride - 1) / stride, w = (W + stride - 1) / stride;
            Array<T> map{{size_t(N), size_t(h), size_t(w)}, vector<T>(N * h * w)};
            for (long n = 0; n < N; n++)
                for (long i = 0; i < h; i++)
                    for (long j = 0; j < w; j++) {
                        const long p = pixel(n, i * stride, j * stride), k = (n * h + i) * w + j;
                        map.data[k] = omega[p] * ell[p];
                        ell_bar[p] = static_cast<T>(grad_output.data[grad_output.data.size() > 1 ? k : 0]) * omega[p];
                    }
            return map;
        }
        const double p = o.number("p"), top = ell.empty() ? 0 : *std::max_element(ell.begin(), ell.end());
        if (top == 0) return {{}, {0}};
        double S = 0, B = 0, tied = 0;
        for (size_t k = 0; k < ell.size(); k++) {
            if (std::isfinite(p)) S += omega[k] * std::pow(ell[k] / top, p);
            B += omega[k];
            if (is_top(ell[k], top)) tied += omega[k];
        }
        if (o.word("reduction") == "sum") B = 1;
        const double scale = std::isfinite(p) ? std::pow(S / B, 1 / p) : 1;
        for (size_t k = 0; k < ell.size(); k++) {
            const double share = std::isfinite(p) ? std::pow(ell[k] / top, p - 1) / S * scale : is_top(ell[k], top) / tied;
            ell_bar[k] = static_cast<T>(grad_output.data[0] * omega[k] * share);
        }
        return {{}, {static_cast<T>(top * scale)}};
    }

    bool is_top(T ell, double top) const { return ell >= top * (1 - 16 * std::numeric_limits<T>::epsilon()); }
};

template <class T>
void judge(const string& folder, const string& out) {
    Loss<T> loss;
    loss.o.text = read_file(folder + "/options.json");
    loss.x = load<T>(folder + "/logits.npy");
    loss.y = load<int64_t>(folder + "/labels.npy").data;
    if (loss.x.shape.size() != 4) throw std::runtime_error("this port takes logits (N, C, H, W)");
    loss.N = loss.x.shape[0], loss.C = loss.x.shape[1], loss.H = loss.x.shape[2], loss.W = loss.x.shape[3];
    loss.r = (static_cast<long>(loss.o.number("kernel_size")) - 1) / 2;
    loss.stride = static_cast<long>(loss.o.number("stride"));
    loss.sigma = loss.o.none("sigma") ? T(0) : static_cast<T>(loss.o.number("sigma"));

    loss.omega.assign(loss.y.size(), 1);
    std::ifstream pixel_weight(folder + "/pixel_weight.npy");
    if (pixel_weight) loss.omega = load<T>(folder + "/pixel_weight.npy").data;
    const bool weighted = !loss.o.none("class_weight");
    const vector<double> class_weight = weighted ? loss.o.list("class_weight") : vector<double>{};
    const int64_t ignored = loss.o.none("ignore_index") ? INT64_MIN : static_cast<int64_t>(loss.o.number("ignore_index"));
    for (size_t q = 0; q < loss.y.size(); q++) {
        const long j = q % loss.W, i = q / loss.W % loss.H;
        const bool window = loss.y[q] != ignored && i % loss.stride == 0 && j % loss.stride == 0;
        if (!window) loss.omega[q] = 0;
        else if (weighted) loss.omega[q] *= static_cast<T>(class_weight.at(loss.y[q]));
    }
    loss.run(out, load<double>(folder + "/grad_output.npy"));
}

int main(int count, char** words) {
    try {
        if (count != 3) throw std::runtime_error("usage: cpp_port CASE_FOLDER OUT_FOLDER");
        const bool is_double = type_of(read_file(string(words[1]) + "/logits.npy")) == "<f8";
        is_double ? judge<double>(words[1], words[2]) : judge<float>(words[1], words[2]);
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
