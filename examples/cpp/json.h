// As much JSON as the metadata of a file has, which Python's json.dumps wrote.
#pragma once

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Json {
  std::string text;  // of a string; "true", "false" or "null" of these
  double number = 0;
  std::vector<Json> items;
  std::map<std::string, Json> members;

  bool is_true() const { return text == "true"; }

  // An empty value if there is no such member.
  const Json& operator[](const std::string& name) const {
    static const Json nothing;
    const auto found = members.find(name);
    return found == members.end() ? nothing : found->second;
  }

  std::vector<double> numbers() const {
    std::vector<double> result;
    for (const Json& item : items) result.push_back(item.number);
    return result;
  }
};

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : text_(text) {}

  Json value() {
    Json json;
    const char first = next();
    if (first == '{') {
      list('}', [&] {
        const std::string name = string();
        expect(':');
        json.members[name] = value();
      });
    } else if (first == '[') {
      list(']', [&] { json.items.push_back(value()); });
    } else if (first == '"') {
      json.text = string();
    } else {
      const size_t end = text_.find_first_of(",]} \n", place_);
      json.text = text_.substr(place_, end - place_);
      json.number = std::strtod(json.text.c_str(), nullptr);
      place_ += json.text.size();
    }
    return json;
  }

 private:
  char next() {
    place_ = text_.find_first_not_of(" \n", place_);
    if (place_ >= text_.size()) throw std::runtime_error("the metadata of the file ends too early");
    return text_[place_];
  }

  void expect(char character) {
    if (next() != character) throw std::runtime_error("the metadata of the file is no JSON");
    ++place_;
  }

  template <typename Item>
  void list(char end, const Item& item) {
    ++place_;
    while (next() != end) {
      item();
      if (next() == ',') ++place_;
    }
    ++place_;
  }

  std::string string() {
    expect('"');
    std::string result;
    for (; place_ < text_.size() && text_[place_] != '"'; ++place_) {
      if (text_[place_] == '\\') ++place_;  // \uXXXX stays as it is, without its backslash
      result += text_[place_];
    }
    expect('"');
    return result;
  }

  const std::string& text_;
  size_t place_ = 0;
};
