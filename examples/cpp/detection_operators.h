// What an exported detector calls on the CPU that is neither PyTorch's nor mmlocalattn's kernels:
// torchvision::nms and torchvision::roi_align, and mmlocalattn_export::keep, which suppresses in a
// batch. torchvision's wheel has the first two in a library that needs that of Python. What the
// libraries given to --operators define, such as a libtorchvision.so that torchvision's own CMake
// project builds, is not defined here.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

// Indices of the boxes (N, 4) that remain, the best first: a box goes where it overlaps a better
// one by more than the threshold.
inline at::Tensor nms_cpu(const at::Tensor& boxes, const at::Tensor& scores, double threshold) {
  const auto order_tensor = std::get<1>(scores.sort(/*stable=*/true, /*dim=*/0, true));
  const auto corners = boxes.to(at::kDouble).contiguous();
  const auto* box = corners.data_ptr<double>();
  const auto* order = order_tensor.data_ptr<int64_t>();
  const int64_t number = boxes.size(0);
  const auto area = [box](int64_t i) {
    return (box[4 * i + 2] - box[4 * i]) * (box[4 * i + 3] - box[4 * i + 1]);
  };
  std::vector<char> is_suppressed(number, 0);
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < number; ++i) {
    if (is_suppressed[i]) continue;
    const int64_t best = order[i];
    kept.push_back(best);
    for (int64_t j = i + 1; j < number; ++j) {
      const int64_t other = order[j];
      const double *a = box + 4 * best, *b = box + 4 * other;
      const double width = std::max(0.0, std::min(a[2], b[2]) - std::max(a[0], b[0]));
      const double height = std::max(0.0, std::min(a[3], b[3]) - std::max(a[1], b[1]));
      const double both = width * height;
      is_suppressed[j] |= both / (area(best) + area(other) - both) > threshold;
    }
  }
  return at::tensor(kept, at::kLong);
}

// A point between four places of a map, and their weights.
struct BilinearPoint {
  int64_t places[4];
  float weights[4];

  BilinearPoint(float y, float x, int64_t height, int64_t width) : places{}, weights{} {
    if (y < -1 || y > height || x < -1 || x > width) return;  // counts as 0
    y = std::max(y, 0.f);
    x = std::max(x, 0.f);
    const int64_t top = std::min<int64_t>(y, height - 1), left = std::min<int64_t>(x, width - 1);
    const int64_t bottom = std::min(top + 1, height - 1), right = std::min(left + 1, width - 1);
    const float down = top == height - 1 ? 0 : y - top, along = left == width - 1 ? 0 : x - left;
    const int64_t ys[2] = {top, bottom}, xs[2] = {left, right};
    for (int i = 0; i < 4; ++i) {
      places[i] = ys[i / 2] * width + xs[i % 2];
      weights[i] = (i / 2 ? down : 1 - down) * (i % 2 ? along : 1 - along);
    }
  }
};

// Means of bilinear samples in the bins of each box.
//   maps (B, C, H, W), boxes (N, 5) as (item, x1, y1, x2, y2), to (N, C, bins_h, bins_w)
// A ratio of samples to a side of a bin that is not above 0 means one sample per place of the map.
// Here maps are (B, H, W, C), so that the innermost loop goes over neighbors in memory.
inline at::Tensor roi_align_cpu(const at::Tensor& maps_in, const at::Tensor& boxes_in, double scale,
                                int64_t bins_h, int64_t bins_w, int64_t ratio, bool aligned) {
  const auto maps = maps_in.permute({0, 2, 3, 1}).contiguous(), boxes = boxes_in.contiguous();
  const int64_t channels = maps.size(3), height = maps.size(1), width = maps.size(2);
  auto output = at::empty({boxes.size(0), channels, bins_h, bins_w}, maps.options());
  const float *map = maps.data_ptr<float>(), *box = boxes.data_ptr<float>();
  float* out = output.data_ptr<float>();
  const auto pool = [&](int64_t n) {
    const float offset = aligned ? 0.5f : 0.f;
    const float* corners = box + 5 * n;
    const float left = corners[1] * scale - offset, top = corners[2] * scale - offset;
    float box_w = corners[3] * scale - offset - left, box_h = corners[4] * scale - offset - top;
    if (!aligned) {
      box_w = std::max(box_w, 1.f);
      box_h = std::max(box_h, 1.f);
    }
    const float bin_w = box_w / bins_w, bin_h = box_h / bins_h;
    const int64_t samples_h = ratio > 0 ? ratio : std::max(0.f, std::ceil(bin_h));
    const int64_t samples_w = ratio > 0 ? ratio : std::max(0.f, std::ceil(bin_w));
    const float count = std::max<int64_t>(samples_h * samples_w, 1);
    const float* item = map + static_cast<int64_t>(corners[0]) * height * width * channels;
    std::vector<float> sums(channels);
    for (int64_t bin = 0; bin < bins_h * bins_w; ++bin) {
      std::fill(sums.begin(), sums.end(), 0.f);
      for (int64_t i = 0; i < samples_h * samples_w; ++i) {
        const float y = top + bin_h * (bin / bins_w + (i / samples_w + 0.5f) / samples_h);
        const float x = left + bin_w * (bin % bins_w + (i % samples_w + 0.5f) / samples_w);
        const BilinearPoint point(y, x, height, width);
        for (int k = 0; k < 4; ++k) {
          const float* values = item + point.places[k] * channels;
          for (int64_t c = 0; c < channels; ++c) sums[c] += point.weights[k] * values[c];
        }
      }
      for (int64_t c = 0; c < channels; ++c) {
        out[(n * channels + c) * bins_h * bins_w + bin] = sums[c] / count;
      }
    }
  };
  at::parallel_for(0, boxes.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) pool(n);
  });
  return output;
}

// Which boxes (B, N, 4) remain where items of a batch do not influence each other, (B, N). A score
// (B, N) below 0 says that there is no box.
inline at::Tensor keep_cpu(const at::Tensor& boxes, const at::Tensor& scores, double threshold) {
  auto kept = at::zeros(scores.sizes(), scores.options().dtype(at::kBool));
  for (int64_t item = 0; item < scores.size(0); ++item) {
    const auto present = scores[item].ge(0).nonzero().squeeze(1);
    const auto best = nms_cpu(boxes[item].index_select(0, present),
                              scores[item].index_select(0, present), threshold);
    kept[item].index_fill_(0, present.index_select(0, best), true);
  }
  return kept;
}

template <typename Kernel>
void define_if_missing(const std::string& space, const std::string& schema, Kernel* kernel) {
  const std::string name = space + "::" + schema.substr(0, schema.find('('));
  if (c10::Dispatcher::singleton().findSchema({name, ""})) return;
  // It stays until the program ends.
  auto* library = new torch::Library(torch::Library::FRAGMENT, space, {}, __FILE__, __LINE__);
  library->def(schema.c_str(), kernel);
}

// After the libraries of --operators are loaded.
inline void define_detection_operators() {
  define_if_missing("torchvision", "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                    nms_cpu);
  define_if_missing("torchvision",
                    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
                    "int pooled_width, int sampling_ratio, bool aligned) -> Tensor",
                    roi_align_cpu);
  define_if_missing("mmlocalattn_export",
                    "keep(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor", keep_cpu);
}
