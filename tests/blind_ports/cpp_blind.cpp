// A port in C++17 with mistakes made by hand: gathered window by window, double arithmetic throughout.
//
// Written from the specification alone, without a look at the catalogue of mistakes.
//
//     cpp_blind CASE_FOLDER OUT_FOLDER [NUMBER_OF_A_MISTAKE ...]
//
// A mistake's number is its place in MISTAKES; the list is printed when there are no arguments.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

using Numbers = std::vector<double>;

const char* const MISTAKES[] = {
    "last line left out: the window's loop stops before the last row and column of the image",
    "labels of image 0: the labels of the first image are used for every image",
    "labels transposed: the labels of each image are read column by column",
    "sigma rounded up: sigma is read as an integer",
    "stride ignored: there is a window on every pixel",
    "not divided back: backward, the divisor is missing",
    "omega forgotten: backward, the window's weight is missing",
    "pooled probability forgotten: backward in probability space, divided by D and not by the pooled probability",
    "power p: backward, the power is p and not p - 1",
    "onehot forgotten: backward, softmax without the target",
    "batch summed: the mean is divided by the number of images",
    "maximum forgotten: the losses are scaled by their maximum, and the value not scaled back",
    "absolute labels: a window's class is that of the last member of its group",
    "normalised kernel: the kernel's weights are made to add up to 1 and the group's size divides once more",
    "log of softmax: the logarithm of a softmax that may have rounded to 0",
    "odd one: 0.05 is added to the merged score of the class after the true one",
    "odd two: the gradient of the second image's first row is halved",
};
enum { LAST_LINE, IMAGE_0, TRANSPOSED, INTEGER_SIGMA, STRIDE, NOT_DIVIDED, NO_OMEGA, NO_POOLED, POWER_P,
       NO_ONEHOT, BATCH, NO_MAXIMUM, LAST_MEMBER, NORMALISED, LOG_OF_SOFTMAX, ODD_SCORE, ODD_ROW };

std::set<int> made;
bool wrong(int mistake) { return made.count(mistake) > 0; }

// ---- files: .npy of version 1, and one flat JSON object

struct Npy {
    std::vector<long> shape;
    Numbers v;
    int bytes = 0;
};

Npy read_npy(const std::string& name) {
    std::ifstream in(name, std::ios::binary);
    std::vector<char> all((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    const unsigned header = static_cast<unsigned char>(all.at(8)) + 256u * static_cast<unsigned char>(all.at(9));
    const std::string text(all.begin() + 10, all.begin() + 10 + header);
    Npy npy;
    const char* s = text.c_str() + text.find('(') + 1;
    while (*s != ')') {
        if (*s >= '0' && *s <= '9') npy.shape.push_back(std::strtol(s, const_cast<char**>(&s), 10));
        else s++;
    }
    const size_t quote = text.find("'descr': '") + 10;
    const char kind = text[quote + 1];
    npy.bytes = text[quote + 2] - '0';
    for (const char* at = all.data() + 10 + header; at < all.data() + all.size(); at += npy.bytes) {
        float f; double d; int64_t l; int32_t i;
        if (kind == 'f' && npy.bytes == 4) { std::memcpy(&f, at, 4); npy.v.push_back(f); }
        else if (kind == 'f' && npy.bytes == 8) { std::memcpy(&d, at, 8); npy.v.push_back(d); }
        else if (kind == 'i' && npy.bytes == 8) { std::memcpy(&l, at, 8); npy.v.push_back(double(l)); }
        else if (kind == 'i' && npy.bytes == 4) { std::memcpy(&i, at, 4); npy.v.push_back(i); }
        else { std::cerr << "numbers of " << name << " are not read here\n"; std::exit(1); }
    }
    return npy;
}

void write_npy(const std::string& name, const std::vector<long>& shape, const Numbers& v, int bytes) {
    std::string text = "{'descr': '<f" + std::to_string(bytes) + "', 'fortran_order': False, 'shape': (";
    for (long n : shape) text += std::to_string(n) + ",";
    text += ")}";
    while ((text.size() + 11) % 64) text += ' ';
    text += '\n';
    std::ofstream out(name, std::ios::binary);
    const char head[] = {'\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0, char(text.size() % 256), char(text.size() / 256)};
    out.write(head, 10) << text;
    for (double d : v) {
        const float f = float(d);
        out.write(bytes == 4 ? reinterpret_cast<const char*>(&f) : reinterpret_cast<const char*>(&d), bytes);
    }
}

// The text behind "name": up to a comma or brace outside of brackets.
std::string option(const std::string& json, const std::string& name) {
    size_t at = json.find("\"" + name + "\":") + name.size() + 3;
    std::string found;
    for (int depth = 0; at < json.size(); at++) {
        const char c = json[at];
        depth += (c == '[') - (c == ']');
        if (depth == 0 && (c == ',' || c == '}')) break;
        if (c != '[' && c != ']' && c != '"' && c != ' ' && c != '\n') found += c;
    }
    return found;
}

Numbers numbers(std::string list) {
    Numbers v;
    std::istringstream in(list);
    for (std::string one; std::getline(in, one, ',');) v.push_back(std::stod(one));
    return v;
}

int main(int argc, char** argv) {
    if (argc < 3) {
        for (const char* name : MISTAKES) std::puts(name);
        return 0;
    }
    for (int i = 3; i < argc; i++) made.insert(std::atoi(argv[i]));
    const std::string in = std::string(argv[1]) + "/", out = std::string(argv[2]) + "/";
    std::ifstream file(in + "options.json");
    const std::string json((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const Npy x = read_npy(in + "logits.npy"), labels = read_npy(in + "labels.npy"), up = read_npy(in + "grad_output.npy");
    if (x.shape.size() != 4) { std::cerr << "images only\n"; return 1; }
    const int N = x.shape[0], C = x.shape[1], H = x.shape[2], W = x.shape[3], A = H * W;

    const int r = std::stoi(option(json, "kernel_size")) / 2;
    const int s = std::stoi(option(json, "stride")), step = wrong(STRIDE) ? 1 : s;
    const bool flat = option(json, "sigma") == "null";
    double sigma = flat ? 1 : std::stod(option(json, "sigma"));
    if (wrong(INTEGER_SIGMA)) sigma = std::ceil(sigma);
    const bool logits = option(json, "space") == "logits", count = option(json, "normalize") == "count";
    const double k = std::stod(option(json, "p")), alpha = std::stod(option(json, "label_smoothing"));
    const std::string void_word = option(json, "ignore_index"), reduction = option(json, "reduction");
    const std::string weights = option(json, "class_weight");
    const Numbers class_weight = weights == "null" ? Numbers(C, 1.0) : numbers(weights);

    std::vector<int> y(N * A);
    for (int n = 0; n < N; n++)
        for (int q = 0; q < A; q++) {
            const int from = wrong(TRANSPOSED) ? q % H * W + q / H : q;
            // read column by column, the H*W labels of an image lie in another order
            y[n * A + q] = int(labels.v[(wrong(IMAGE_0) ? 0 : n * A) + from]);
        }
    auto seen = [&](int q) { return void_word == "null" || y[q] != std::stoi(void_word); };

    // Each window: its pixel, its weight, its group with the weights, its divisor, its loss.
    struct Window {
        int p = 0, cls = 0;
        double omega = 0, D = 0, ell = 0, ell_bar = 0, pooled = 0;
        std::vector<std::pair<int, double>> group;
        Numbers u;  // softmax of the merged vector
    };
    std::vector<Window> windows;
    auto score = [&](int q, int c) { return x.v[(q / A * C + c) * A + q % A]; };
    auto softmax = [&](const Numbers& z) {
        double top = -INFINITY, sum = 0;
        for (double v : z) top = v > top ? v : top;
        Numbers u;
        for (double v : z) u.push_back(std::exp(v - top)), sum += u.back();
        for (double& v : u) v /= sum;
        return u;
    };
    // -log softmax of the class
    auto loss_of = [&](const Numbers& z, int c) {
        if (wrong(LOG_OF_SOFTMAX)) return -std::log(softmax(z)[c]);
        double top = -INFINITY, sum = 0;
        for (double v : z) top = v > top ? v : top;
        for (double v : z) sum += std::exp(v - top);
        return top - z[c] + std::log(sum);
    };
    std::vector<Numbers> single(N * A);  // softmax of each pixel, in probability space
    for (int q = 0; q < N * A && !logits; q++) {
        Numbers z;
        for (int c = 0; c < C; c++) z.push_back(score(q, c));
        single[q] = softmax(z);
    }
    const int end = wrong(LAST_LINE) ? 1 : 0;
    for (int p = 0; p < N * A; p++) {
        const int n = p / A, i = p % A / W, j = p % W;
        if (i % step || j % step || !seen(p)) continue;
        Window win;
        win.p = p, win.cls = y[p];
        win.omega = class_weight.at(y[p]);
        double kernel = 0;
        for (int a = -r; a <= r; a++)
            for (int b = -r; b <= r; b++) {
                const int d = std::max(std::abs(a), std::abs(b));
                const double w = flat ? 1 : std::exp(-d * d / (2 * sigma * sigma));
                kernel += w;
                const bool centre = a == 0 && b == 0;
                if (i + a < 0 || j + b < 0 || i + a >= H - end * !centre || j + b >= W - end * !centre) continue;
                const int q = n * A + (i + a) * W + j + b;
                if (y[q] != y[p]) continue;
                win.group.push_back({q, w});
                win.D += count ? 1 : w;
            }
        if (wrong(NORMALISED)) win.D = kernel * win.group.size();
        if (wrong(LAST_MEMBER)) win.cls = y[std::min(p + 1, n * A + A - 1)] < C ? y[std::min(p + 1, n * A + A - 1)] : y[p];
        if (win.omega > 0) windows.push_back(win);
    }
    for (Window& win : windows) {
        if (logits) {
            Numbers z(C);
            for (auto [q, w] : win.group)
                for (int c = 0; c < C; c++) z[c] += w * score(q, c) / win.D;
            if (wrong(ODD_SCORE)) z[(win.cls + 1) % C] += 0.05;
            win.u = softmax(z);
            for (int c = 0; c < C; c++) {
                const double t = (1 - alpha) * (c == win.cls) + alpha / C;
                if (t != 0) win.ell += t * loss_of(z, c);
            }
        } else {
            for (auto [q, w] : win.group) win.pooled += w * single[q][win.cls];
            win.ell = -std::log(win.pooled / win.D);
        }
    }

    // Stage 3
    Numbers value;
    std::vector<long> shape;
    const double given = up.v[0];
    if (reduction == "none") {
        const long h = (H + s - 1) / s, w = (W + s - 1) / s;
        shape = {N, h, w};
        value.assign(N * h * w, 0);
        for (Window& win : windows) {
            const int i = win.p % A / W, j = win.p % W;
            if (i % s || j % s) continue;
            const long at = (win.p / A * h + i / s) * w + j / s;
            value[at] = win.omega * win.ell;
            win.ell_bar = (up.v.size() > 1 ? up.v[at] : given) * (wrong(NO_OMEGA) ? 1 : win.omega);
        }
    } else {
        double top = 0, S = 0, B = 0;
        for (const Window& win : windows) top = std::max(top, win.ell), B += win.omega;
        for (const Window& win : windows) S += win.omega * std::pow(win.ell / top, k);
        if (reduction == "sum") B = 1;
        else if (wrong(BATCH)) B *= N;
        double root = std::isinf(k) ? 1 : std::pow(S / B, 1 / k);
        value = {windows.empty() || top == 0 ? 0 : (wrong(NO_MAXIMUM) ? 1 : top) * root};
        double tied = 0;
        for (const Window& win : windows) tied += win.ell == top ? win.omega : 0;
        for (Window& win : windows) {
            const double omega = wrong(NO_OMEGA) ? 1 : win.omega;
            if (top == 0) continue;
            win.ell_bar = std::isinf(k) ? given * omega * (win.ell == top) / tied
                                        : given * omega * std::pow(win.ell / top, wrong(POWER_P) ? k : k - 1) / S * root;
        }
        if (wrong(NO_MAXIMUM))  // the derivative of its own forward, with the maximum taken for a constant
            for (Window& win : windows) win.ell_bar /= top;
    }

    // Backwards
    Numbers gradient(x.v.size(), 0.0);
    auto entry = [&](int q, int c) -> double& { return gradient[(q / A * C + c) * A + q % A]; };
    for (const Window& win : windows)
        for (auto [q, w] : win.group)
            for (int c = 0; c < C; c++) {
                const double hot = c == win.cls;
                if (logits) {
                    const double t = wrong(NO_ONEHOT) ? 0 : (1 - alpha) * hot + alpha / C;
                    entry(q, c) += w * win.ell_bar * (win.u[c] - t) / (wrong(NOT_DIVIDED) ? 1 : win.D);
                } else {
                    const double below = wrong(NOT_DIVIDED) || wrong(NO_POOLED) ? win.D : win.pooled;
                    const double by_pixel = single[q][c] - (wrong(NO_ONEHOT) ? 0 : hot);
                    entry(q, c) += win.ell_bar * w * single[q][win.cls] / below * by_pixel;
                }
            }
    if (wrong(ODD_ROW) && N > 1)
        for (int q = A; q < A + W; q++)
            for (int c = 0; c < C; c++) entry(q, c) /= 2;
    write_npy(out + "value.npy", shape, value, x.bytes);
    write_npy(out + "grad.npy", x.shape, gradient, x.bytes);
}
