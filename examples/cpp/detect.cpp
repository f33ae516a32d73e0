// Runs a file of tools/export.py without Python and prints what it finds in an image.
//
//   detect [options] MODEL.pt IMAGE.ppm
//     --operators LIBRARY   mmlocalattn/_ext*.so; may be given again for another one
//     --score 0.3           detections from this score on
//     --threads 2           of the kernels
//     --repeat 10           more runs, for the median of their times and the peak memory
//
// The image is resized as large as the file takes it, normalised and padded as the file says.
#include <dlfcn.h>
#include <sys/resource.h>
#include <torch/script.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <functional>
#include <iostream>

#include "detection_operators.h"
#include "json.h"
#if __has_include(<torch/csrc/inductor/aoti_package/model_package_loader.h>)
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#define WITH_AOT_INDUCTOR
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif
#ifdef WITH_PNG
#include <png.h>
#endif

namespace {

struct Arguments {
  std::vector<std::string> operators;
  std::string model, image;
  double score = 0.3;
  int threads = 0, repeat = 0;
};

struct Model {
  Json meta;
  std::function<std::vector<at::Tensor>(const at::Tensor&)> run;
};

// An image as the model takes it, (1, 3, H, W), and how it came from the original.
struct Input {
  at::Tensor image;
  double scale;
  int64_t height, width;  // of the original
};

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name.rfind("--", 0) != 0) {
      files.push_back(name);
      continue;
    }
    TORCH_CHECK(++i < argc, name, " needs a value");
    if (name == "--operators") {
      arguments.operators.emplace_back(argv[i]);
    } else if (name == "--score") {
      arguments.score = std::stod(argv[i]);
    } else if (name == "--threads") {
      arguments.threads = std::stoi(argv[i]);
    } else if (name == "--repeat") {
      arguments.repeat = std::stoi(argv[i]);
    } else {
      TORCH_CHECK(false, "there is no option ", name);
    }
  }
  TORCH_CHECK(files.size() == 2,
              "usage: detect [--operators LIBRARY] [--score 0.3] [--threads N] "
              "[--repeat N] MODEL.pt IMAGE.ppm");
  arguments.model = files[0];
  arguments.image = files[1];
  return arguments;
}

// glibc gives a large block back to the kernel when it is freed, and every map of a model is one:
// the kernel then clears the pages of the next map anew. The tools in Python do the same.
void keep_freed_memory() {
#ifdef __GLIBC__
  const char* keep = std::getenv("MMLOCALATTN_KEEP_MEMORY");
  if (keep && std::string(keep) == "0") return;
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

// Its initializers register the operators. It stays loaded.
void load_operators(const std::string& path) {
  TORCH_CHECK(dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL), "cannot load operators: ", dlerror());
}

bool has_ending(const std::string& path, const std::string& ending) {
  return path.size() > ending.size() &&
         path.compare(path.size() - ending.size(), ending.size(), ending) == 0;
}

// A package that AOTInductor compiled.
Model load_package(const std::string& path) {
#ifdef WITH_AOT_INDUCTOR
  TORCH_CHECK(std::ifstream(path), "there is no model ", path);
  const auto loader = std::make_shared<torch::inductor::AOTIModelPackageLoader>(path);
  const auto meta = loader->get_metadata()["mmlocalattn.json"];
  TORCH_CHECK(!meta.empty(), path, " has no mmlocalattn.json in its metadata");
  return {JsonReader(meta).value(),
          [loader](const at::Tensor& image) { return loader->run({image}); }};
#else
  TORCH_CHECK(false, path, ": packages of AOTInductor need torch 2.6 or newer");
#endif
}

Model load_torchscript(const std::string& path) {
  TORCH_CHECK(std::ifstream(path), "there is no model ", path);
  torch::jit::ExtraFilesMap files{{"mmlocalattn.json", ""}};
  auto module = torch::jit::load(path, at::kCPU, files);
  const auto run = [module](const at::Tensor& image) mutable {
    std::vector<at::Tensor> outputs;
    const auto result = module.forward({image});
    for (const auto& output : result.toTupleRef().elements()) {
      outputs.push_back(output.toTensor());
    }
    return outputs;
  };
  TORCH_CHECK(!files["mmlocalattn.json"].empty(), path, " was not written by tools/export.py");
  return {JsonReader(files["mmlocalattn.json"]).value(), run};
}

// Bytes (H, W, 3) in the order red, green, blue.
at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic, word;
  int64_t numbers[3];  // width, height, largest value
  file >> magic;
  TORCH_CHECK(magic == "P6", path, " is no binary PPM");
  for (int64_t& number : numbers) {
    while (file >> word && word[0] == '#') std::getline(file, word);
    number = std::atoll(word.c_str());
  }
  TORCH_CHECK(file, path, " ends before its first row");
  TORCH_CHECK(numbers[2] == 255, path, " has values of more than a byte, or fewer than 256");
  file.get();
  auto image = at::empty({numbers[1], numbers[0], 3}, at::kByte);
  file.read(reinterpret_cast<char*>(image.data_ptr<uint8_t>()), image.numel());
  TORCH_CHECK(file, path, " ends before its last row");
  return image;
}

at::Tensor read_png(const std::string& path) {
#ifdef WITH_PNG
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  TORCH_CHECK(png_image_begin_read_from_file(&header, path.c_str()), path, ": ", header.message);
  header.format = PNG_FORMAT_RGB;
  auto image = at::empty({header.height, header.width, 3}, at::kByte);
  TORCH_CHECK(png_image_finish_read(&header, nullptr, image.data_ptr<uint8_t>(), 0, nullptr), path,
              ": ", header.message);
  return image;
#else
  TORCH_CHECK(false, path, ": without libpng this program reads PPM alone");
#endif
}

at::Tensor read_image(const std::string& path) {
  TORCH_CHECK(std::ifstream(path), "there is no image ", path);
  return has_ending(path, ".png") ? read_png(path) : read_ppm(path);
}

// What mmdet's Resize(keep_ratio=True) and data_preprocessor do.
Input prepare(const at::Tensor& pixels, const Json& meta) {
  const Json& rules = meta["preprocessing"];
  double height = 0, width = 0;  // the largest that the file takes
  for (const Json& size : meta["sizes"].items) {
    height = std::max(height, size.items.at(0).number);
    width = std::max(width, size.items.at(1).number);
  }
  const double scale = std::min(height / pixels.size(0), width / pixels.size(1));
  const int64_t h = pixels.size(0) * scale + 0.5, w = pixels.size(1) * scale + 0.5;
  auto image = pixels.permute({2, 0, 1}).unsqueeze(0).to(at::kFloat);
  image = at::upsample_bilinear2d(image, {h, w}, /*align_corners=*/false).round();
  const bool takes_rgb = rules["bgr_to_rgb"].is_true() || rules["to_rgb"].is_true();
  if (!takes_rgb) image = image.flip(1);
  if (!rules["mean"].items.empty()) {
    image = image.sub(at::tensor(rules["mean"].numbers(), at::kFloat).view({1, -1, 1, 1}));
    image = image.div(at::tensor(rules["std"].numbers(), at::kFloat).view({1, -1, 1, 1}));
  }
  int64_t bottom = height - h, right = width - w;
  if (meta["sizes"].items.size() > 1) {  // a range of sizes: no more than the model needs
    const auto divisor = std::max<int64_t>(1, rules["pad_size_divisor"].number);
    bottom = (divisor - h % divisor) % divisor;
    right = (divisor - w % divisor) % divisor;
  }
  return {at::constant_pad_nd(image, {0, right, 0, bottom}).contiguous(), scale, pixels.size(0),
          pixels.size(1)};
}

std::string class_name(const Json& meta, size_t label) {
  const auto& classes = meta["classes"].items;
  return label < classes.size() ? classes[label].text : std::to_string(label);
}

// Lines of class, score and box in pixels of the original image.
void print_detections(const std::vector<at::Tensor>& outputs, const Json& meta, const Input& input,
                      double score) {
  const float largest[] = {float(input.width), float(input.height)};
  const auto boxes = (outputs[0][0] / input.scale).contiguous();
  const auto scores = outputs[1][0].contiguous();
  const auto labels = outputs[2][0].contiguous();
  for (int64_t i = 0; i < scores.numel() && scores.data_ptr<float>()[i] >= score; ++i) {
    const int64_t label = labels.data_ptr<int64_t>()[i];
    if (label < 0) break;
    const float* box = boxes.data_ptr<float>() + 4 * i;
    std::printf("%s %.4f", class_name(meta, label).c_str(), scores.data_ptr<float>()[i]);
    for (int k = 0; k < 4; ++k) std::printf(" %.2f", std::min(box[k], largest[k % 2]));
    std::printf("\n");
  }
}

// Lines of class and share of the pixels that are not padding.
void print_labels(const at::Tensor& labels, const Json& meta, const Input& input) {
  const auto inside = labels[0]
                          .narrow(0, 0, std::lround(input.height * input.scale))
                          .narrow(1, 0, std::lround(input.width * input.scale));
  const auto counts = at::bincount(inside.flatten());
  for (int64_t label = 0; label < counts.numel(); ++label) {
    const double share = counts[label].item<double>() / inside.numel();
    if (share > 0) std::printf("%s %.4f\n", class_name(meta, label).c_str(), share);
  }
}

// The name of each output, its shape and the mean of its magnitudes.
void print_shapes(const std::vector<at::Tensor>& outputs, const Json& meta) {
  const auto& names = meta["outputs"].items;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto name = i < names.size() ? names[i].text : "output" + std::to_string(i);
    std::cout << name << ' ' << outputs[i].sizes() << ' '
              << outputs[i].to(at::kDouble).abs().mean().item<double>() << '\n';
  }
}

void measure(const Model& model, const at::Tensor& image, int repeat) {
  std::vector<double> milliseconds;
  const std::clock_t cpu_begin = std::clock();
  for (int i = 0; i < repeat; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    model.run(image);
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
    milliseconds.push_back(time.count());
  }
  const double cpu = 1000.0 * (std::clock() - cpu_begin) / CLOCKS_PER_SEC / repeat;
  std::sort(milliseconds.begin(), milliseconds.end());
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  std::printf(
      "median of %d runs %.1f ms, best %.1f ms, processor time %.1f ms, peak memory %ld MiB\n",
      repeat, milliseconds[repeat / 2], milliseconds[0], cpu, usage.ru_maxrss / 1024);
}

void detect(const Arguments& arguments) {
  keep_freed_memory();
  if (arguments.threads > 0) at::set_num_threads(arguments.threads);
  for (const std::string& path : arguments.operators) load_operators(path);
  define_detection_operators();
  const c10::InferenceMode guard;
  const Model model = has_ending(arguments.model, ".pt2") ? load_package(arguments.model)
                                                          : load_torchscript(arguments.model);
  const Input input = prepare(read_image(arguments.image), model.meta);
  const auto outputs = model.run(input.image);
  const auto& names = model.meta["outputs"].items;
  const std::string first = names.empty() ? "" : names[0].text;
  if (first == "boxes") {
    print_detections(outputs, model.meta, input, arguments.score);
  } else if (first == "labels") {
    print_labels(outputs[0], model.meta, input);
  } else {
    print_shapes(outputs, model.meta);
  }
  if (arguments.repeat > 0) measure(model, input.image, arguments.repeat);
}

}  // namespace

int main(int argc, char** argv) {
  std::string reason;
  try {
    detect(parse(argc, argv));
    return 0;
  } catch (const c10::Error& error) {
    reason = error.what_without_backtrace();
  } catch (const std::exception& error) {
    reason = error.what();
  }
  // TorchScript tells more, in lines that speak of its own source.
  reason.erase(0, reason.find_first_not_of(" \n"));
  std::cerr << "error: " << reason.substr(0, reason.find('\n')) << '\n';
  return 1;
}
