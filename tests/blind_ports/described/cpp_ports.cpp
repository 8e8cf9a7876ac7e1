// The right port in C++, eight with one mistake each, after the descriptions, and two with mistakes that the catalogue
// has not. The third word says which:
//
//     g++ -O2 -std=c++17 -o cpp_ports cpp_ports.cpp
//     ./cpp_ports CASE_FOLDER OUT_FOLDER right

#include <iostream>
#include <memory>

#include "cpp_right.hpp"

struct DropsTheLastWindows : Port {
    long along(long n) const override { return n / s; }
};

struct CountsInsteadOfWeights : Port {
    double base() const override {
        return static_cast<double>(std::count_if(windows.begin(), windows.end(), [](const Window& v) { return v.valid; }));
    }
};

struct SmallerDistance : Port {
    double distance(long di, long dj) const override { return std::min(std::labs(di), std::labs(dj)); }
};

struct ReadsEveryClass : Port {
    bool joins(int, int) const override { return true; }
};

struct UnweightedNeighbours : Port {
    double backward_weight(const Member&) const override { return 1; }
};

struct UpstreamTwice : Port {
    double arriving(long k) const override { return Port::arriving(k) * Port::arriving(k); }
};

struct AverageOfLogarithms : Port {
    void merge_probability(Window& v) const override {
        for (const Member& q : v.members) v.ell -= q.w * std::log(u[place(q.n, v.label, q.i, q.j)]) / v.D;
    }
    double probability_slope(const Window& v, const Member& q) const override {
        return -q.w / v.D / u[place(q.n, v.label, q.i, q.j)];
    }
};

struct IgnoresPixelWeight : Port {
    double weight_at(const Window& v) const override { return class_weight.empty() ? 1 : class_weight.at(v.label); }
};

// Not in the catalogue: the distance of a chamfer mask, where a step aside costs half.
struct ChamferDistance : Port {
    double distance(long di, long dj) const override {
        return std::max(std::labs(di), std::labs(dj)) + 0.5 * std::min(std::labs(di), std::labs(dj));
    }
};

// Not in the catalogue: classes next to each other are one group, as if labels were grades.
struct ClassesAsGrades : Port {
    bool joins(int mine, int other) const override {
        return mine == other || (other != void_label && std::abs(mine - other) == 1);
    }
};

std::unique_ptr<Port> named(const std::string& name) {
    if (name == "right") return std::make_unique<Port>();
    if (name == "drops_the_last_windows") return std::make_unique<DropsTheLastWindows>();
    if (name == "counts_instead_of_weights") return std::make_unique<CountsInsteadOfWeights>();
    if (name == "smaller_distance") return std::make_unique<SmallerDistance>();
    if (name == "reads_every_class") return std::make_unique<ReadsEveryClass>();
    if (name == "unweighted_neighbours") return std::make_unique<UnweightedNeighbours>();
    if (name == "upstream_twice") return std::make_unique<UpstreamTwice>();
    if (name == "average_of_logarithms") return std::make_unique<AverageOfLogarithms>();
    if (name == "ignores_pixel_weight") return std::make_unique<IgnoresPixelWeight>();
    if (name == "chamfer_distance") return std::make_unique<ChamferDistance>();
    if (name == "classes_as_grades") return std::make_unique<ClassesAsGrades>();
    throw std::runtime_error("there is no port named " + name);
}

int main(int argc, char** argv) {
    if (argc != 4) {
        std::cerr << "usage: cpp_ports CASE_FOLDER OUT_FOLDER NAME\n";
        return 2;
    }
    try {
        named(argv[3])->run(argv[1], argv[2]);
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
    return 0;
}
