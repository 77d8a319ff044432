#include "engine/checkpoint/safetensors_parser.h"

#include <array>
#include <limits>
#include <nlohmann/json.hpp>

namespace strata::safetensors {
namespace {

using Json = nlohmann::json;

// Takes the parser's events one by one. Whatever the format does not have at that place is damage.
class Events final : public nlohmann::json_sax<Json> {
 public:
  Events(const Damage& damage, std::vector<Tensor>& tensors, Metadata& metadata)
      : damage_(damage), tensors_(tensors), metadata_(metadata) {}

  bool start_object(size_t /*elements*/) override {
    if (place_ == Place::outside) {
      place_ = Place::root;
    } else if (place_ == Place::root && key_ == "__metadata__") {
      if (std::exchange(has_metadata_, true)) damage_("its \"__metadata__\" appears twice");
      place_ = Place::metadata;
    } else if (place_ == Place::root) {
      place_ = Place::tensor;
      fields_ = {};
      tensors_.emplace_back().name = key_;
    } else {
      misplaced("an object");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor) finish_tensor();
    place_ = place_ == Place::root ? Place::outside : Place::root;
    return true;
  }

  bool key(std::string& text) override {
    key_ = text;
    if (place_ == Place::tensor) enter_field();
    return true;
  }

  bool string(std::string& text) override {
    if (place_ == Place::metadata) {
      if (!metadata_.emplace(key_, text).second) damage_("a key of its metadata appears twice");
    } else if (place_ == Place::tensor && field_ == Field::dtype) {
      const std::optional<ElementType> type = find_element_type(text);
      if (!type) in_tensor("has the unknown dtype '{}'", text.substr(0, 20));
      tensors_.back().type = *type;
    } else {
      misplaced("a string");
    }
    return true;
  }

  bool start_array(size_t /*elements*/) override {
    if (place_ != Place::tensor || field_ == Field::dtype) misplaced("a list");
    place_ = field_ == Field::shape ? Place::shape : Place::offsets;
    return true;
  }

  bool end_array() override {
    if (place_ == Place::offsets && offset_count_ != offsets_.size()) bad_offsets();
    place_ = Place::tensor;
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    if (place_ == Place::shape) {
      if (value > std::numeric_limits<int64_t>::max()) in_tensor("has a dimension without bounds");
      tensors_.back().shape.push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::offsets) {
      if (offset_count_ == offsets_.size()) bad_offsets();
      offsets_[offset_count_++] = value;
    } else {
      misplaced("a number");
    }
    return true;
  }

  bool null() override { misplaced("null"); }
  bool boolean(bool) override { misplaced("true or false"); }
  bool number_integer(int64_t) override { misplaced("a negative number"); }
  bool number_float(double, const std::string&) override { misplaced("a fraction"); }
  bool binary(Json::binary_t&) override { misplaced("bytes"); }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    damage_("its header is not valid JSON at byte {}", position);
  }

 private:
  enum class Place : uint8_t { outside, root, metadata, tensor, shape, offsets };
  enum class Field : uint8_t { dtype, shape, offsets };
  static constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};

  void enter_field() {
    for (size_t i = 0; i < kFields.size(); ++i) {
      if (key_ != kFields[i]) continue;
      if (std::exchange(fields_[i], true)) in_tensor("says its {} twice", kFields[i]);
      field_ = static_cast<Field>(i);
      if (field_ == Field::offsets) offset_count_ = 0;
      return;
    }
    in_tensor("has a key that is none of dtype, shape and data_offsets");
  }

  void finish_tensor() {
    for (size_t i = 0; i < kFields.size(); ++i) {
      if (!fields_[i]) in_tensor("lacks its {}", kFields[i]);
    }
    Tensor& tensor = tensors_.back();
    const auto [begin, end] = offsets_;
    const std::optional<uint64_t> bytes = bytes_of(tensor.type, tensor.shape);
    if (!bytes) in_tensor("is larger than any file");
    if (begin > end || end - begin != *bytes) {
      in_tensor("takes {} bytes by its dtype and shape, and its data_offsets are {} and {}", *bytes,
                begin, end);
    }
    tensor.begin = begin;
    tensor.bytes = *bytes;
  }

  [[noreturn]] void bad_offsets() const { in_tensor("has data_offsets that are not two numbers"); }

  [[noreturn]] void misplaced(std::string_view what) const {
    if (place_ == Place::outside) damage_("its header is {} and no JSON object", what);
    if (place_ == Place::metadata) damage_("its metadata holds {} in place of a string", what);
    if (place_ == Place::root) {
      damage_.in_tensor(key_, "is {} in place of an object", what);
    }
    in_tensor("has {} in its {}", what, kFields[static_cast<size_t>(field_)]);
  }

  template <typename... Values>
  [[noreturn]] void in_tensor(fmt::format_string<Values...> what, Values&&... values) const {
    damage_.in_tensor(tensors_.back().name, what, std::forward<Values>(values)...);
  }

  const Damage& damage_;
  std::vector<Tensor>& tensors_;
  Metadata& metadata_;
  Place place_ = Place::outside;
  std::string key_;  // of the object under way
  bool has_metadata_ = false;
  // Of the tensor under way.
  Field field_ = Field::dtype;
  std::array<bool, kFields.size()> fields_ = {};
  std::array<uint64_t, 2> offsets_ = {};
  size_t offset_count_ = 0;
};

}  // namespace

void parse_text(std::string_view text, const Damage& damage, std::vector<Tensor>& tensors,
                Metadata& metadata) {
  if (!text.starts_with('{')) damage("its header does not begin with a brace");
  Events events(damage, tensors, metadata);
  Json::sax_parse(text, &events);
}

}  // namespace strata::safetensors
