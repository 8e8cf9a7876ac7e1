// Reads one array of an exported golden case: C++17, the standard library alone.
//
//     lalref golden export cases --format json
//     g++ -std=c++17 -o read_golden examples/read_golden.cpp
//     ./read_golden cases/plain.json grad
//
// Prints its shape, then its numbers in C order, exactly (hexadecimal floats), one a line.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

// The list behind "key": [ from position `at` on. strtod reads "0x1.8p+1", "nan" and "-inf" as well as 255.
std::vector<double> list(const std::string& text, const std::string& key, size_t at) {
    at = text.find('"' + key + "\": [", at) + key.size() + 5;
    std::vector<double> numbers;
    while (text[at] != ']') {
        if (text[at] == '"' || text[at] == ',' || text[at] == ' ') { at++; continue; }
        char* end;
        numbers.push_back(std::strtod(&text[at], &end));
        if (end == &text[at]) throw std::runtime_error("no number at " + text.substr(at, 20));
        at = end - text.data();
    }
    return numbers;
}

int main(int count, char** words) {
    if (count != 3) return std::fprintf(stderr, "usage: read_golden CASE.json ARRAY\n"), 2;
    std::ifstream file(words[1]);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const size_t at = text.find('"' + std::string(words[2]) + "\": {\"dtype\"", text.find("\"arrays\""));
    if (at == std::string::npos) return std::fprintf(stderr, "%s has no array %s\n", words[1], words[2]), 1;
    for (double n : list(text, "shape", at)) std::printf("%.0f ", n);
    std::printf("\n");
    for (double v : list(text, "data", at)) std::printf("%a\n", v);
}
