// Reads and writes what `lalref verify --command` exchanges with a program: .npy files and options.json.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Npy {
    std::string type;  // as in the header: <f4, <f8, <i8, |u1
    std::vector<long> shape;
    std::vector<double> data;

    long size() const {
        long n = 1;
        for (long s : shape) n *= s;
        return n;
    }
};

inline std::string slurp(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) throw std::runtime_error("cannot open " + path);
    return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

template <class T>
void unpack(const char* bytes, std::vector<double>& to) {
    for (double& number : to) {
        T one;
        std::memcpy(&one, bytes, sizeof one);
        number = static_cast<double>(one);
        bytes += sizeof one;
    }
}

inline Npy read_npy(const std::string& path) {
    const std::string all = slurp(path);
    if (all.size() < 10) throw std::runtime_error(path + " is too short");
    const size_t length = static_cast<unsigned char>(all[8]) + (static_cast<unsigned char>(all[9]) << 8);
    const std::string header = all.substr(10, length);
    Npy npy;
    const size_t quote = header.find('\'', header.find("descr") + 6) + 1;
    npy.type = header.substr(quote, header.find('\'', quote) - quote);
    const char* at = header.c_str() + header.find('(') + 1;
    while (*at != ')') {
        if (*at >= '0' && *at <= '9') npy.shape.push_back(std::strtol(at, const_cast<char**>(&at), 10));
        else ++at;
    }
    npy.data.resize(npy.size());
    const char* bytes = all.data() + 10 + length;
    if (npy.type == "<f8") unpack<double>(bytes, npy.data);
    else if (npy.type == "<f4") unpack<float>(bytes, npy.data);
    else if (npy.type == "<i8") unpack<int64_t>(bytes, npy.data);
    else if (npy.type == "<i4") unpack<int32_t>(bytes, npy.data);
    else if (npy.type == "|u1") unpack<uint8_t>(bytes, npy.data);
    else throw std::runtime_error("cannot read numbers of type " + npy.type);
    return npy;
}

inline void write_npy(const std::string& path, const Npy& npy) {
    std::string header = "{'descr': '" + npy.type + "', 'fortran_order': False, 'shape': (";
    for (long s : npy.shape) header += std::to_string(s) + ", ";
    header += ")}";
    while ((10 + header.size() + 1) % 64 != 0) header += ' ';
    header += '\n';
    std::ofstream out(path, std::ios::binary);
    out.write("\x93NUMPY\x01\x00", 8);
    out.put(static_cast<char>(header.size() & 255));
    out.put(static_cast<char>(header.size() >> 8));
    out << header;
    for (double number : npy.data) {
        const float single = static_cast<float>(number);
        if (npy.type == "<f4") out.write(reinterpret_cast<const char*>(&single), sizeof single);
        else out.write(reinterpret_cast<const char*>(&number), sizeof number);
    }
}

// options.json is flat: names, and behind each a number, a word, null or a list of numbers.
class Settings {
    std::map<std::string, std::string> found;

public:
    explicit Settings(const std::string& json) {
        size_t at = 0;
        while ((at = json.find('"', at)) != std::string::npos) {
            const size_t end = json.find('"', at + 1);
            const std::string name = json.substr(at + 1, end - at - 1);
            size_t from = json.find(':', end) + 1, to = from;
            for (int depth = 0; to < json.size(); ++to) {
                if (json[to] == '[') ++depth;
                if (json[to] == ']') --depth;
                if (depth == 0 && (json[to] == ',' || json[to] == '}')) break;
            }
            std::string text;
            for (char c : json.substr(from, to - from))
                if (!std::isspace(static_cast<unsigned char>(c)) && c != '"') text += c;
            found[name] = text;
            at = to;
        }
    }
    std::string word(const std::string& name, const std::string& otherwise) const {
        const auto it = found.find(name);
        return it == found.end() ? otherwise : it->second;
    }
    bool given(const std::string& name) const { return word(name, "null") != "null"; }
    double number(const std::string& name, double otherwise) const {
        return given(name) ? std::stod(word(name, "")) : otherwise;
    }
    std::vector<double> list(const std::string& name) const {
        std::vector<double> numbers;
        std::string text = word(name, "[]");
        for (char& c : text)
            if (c == '[' || c == ']' || c == ',') c = ' ';
        const char* at = text.c_str();
        for (char* end; ; at = end) {
            const double number = std::strtod(at, &end);
            if (end == at) return numbers;
            numbers.push_back(number);
        }
    }
};
