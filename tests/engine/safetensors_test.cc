// safetensors files: what is written is read back, and what is damaged is refused by name.
#include <gmock/gmock.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "engine/checkpoint/safetensors_file.h"
#include "strata/error.h"
#include "tests/temporary_directory.h"

namespace strata::safetensors {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::TemporaryDirectory;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// A file's length and header.
std::string start_of(const std::string& text) {
  const uint64_t length = text.size();
  std::string start(sizeof(length), '\0');
  std::memcpy(start.data(), &length, sizeof(length));
  return start + text;
}

Header parse(const std::string& text, uint64_t data_bytes) {
  const std::string start = start_of(text);
  return Header::parse(bytes_of(start), start.size() + data_bytes, "x.safetensors");
}

template <typename Thrown, typename Action>
std::string message_of(const Action& action) {
  try {
    action();
  } catch (const Thrown& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing of that kind was thrown";
  return "";
}

std::vector<std::string> names(const Header& header) {
  std::vector<std::string> names;
  for (const Tensor& tensor : header.tensors()) names.push_back(tensor.name);
  return names;
}

TEST(SafetensorsHeader, SaysWhatItsTextSays) {
  const Header header =
      parse(R"({"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"__metadata__":{"k":"v"},)"
            R"( "a":{"data_offsets":[0,4],"shape":[],"dtype":"F32"},)"
            R"( "none":{"dtype":"I64","shape":[0,7],"data_offsets":[16,16]}}  )",
            16);
  EXPECT_THAT(names(header), ElementsAre("a", "b", "none"));
  const Tensor* b = header.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->type, ElementType::bf16);
  EXPECT_THAT(b->shape, ElementsAre(2, 3));
  EXPECT_EQ(b->begin, 4u);
  EXPECT_EQ(b->numel(), 6);
  EXPECT_EQ(header.find("a")->numel(), 1);
  EXPECT_EQ(header.find("none")->numel(), 0);
  EXPECT_EQ(header.find("c"), nullptr);
  EXPECT_EQ(header.metadata().at("k"), "v");
}

TEST(SafetensorsHeader, PlacesTensorsAlignedInTheOrderGiven) {
  const Header header({{"odd", ElementType::u8, {3}},
                       {"z", ElementType::f32, {2, 2}},
                       {"half", ElementType::bf16, {1}},
                       {"a", ElementType::f32, {1}}});
  EXPECT_THAT(names(header), ElementsAre("z", "a", "half", "odd"));
  for (const Tensor& tensor : header.tensors()) {
    EXPECT_EQ(tensor.begin % size_bytes(tensor.type), 0u) << tensor.name;
  }
  EXPECT_EQ(header.data_begin() % Header::kDataAlignment, 0u);
  EXPECT_EQ(header.file_bytes(), header.data_begin() + 25);
}

TEST(SafetensorsHeader, IsReadBackAsWritten) {
  const Header header({{"weird \"name\"\n\xc3\xa9", ElementType::f16, {2}},
                       {"b", ElementType::boolean, {5}},
                       {"empty", ElementType::f64, {0}}},
                      {{"format", "pt"}, {"quote", "\"{}\\"}});
  const std::string start = header.serialize();
  EXPECT_EQ(start.size(), header.data_begin());
  const Header back = Header::parse(bytes_of(start), header.file_bytes(), "x.safetensors");
  EXPECT_EQ(back.serialize(), start);
  EXPECT_EQ(back.metadata(), header.metadata());
  EXPECT_EQ(names(back), names(header));
}

TEST(SafetensorsHeader, WithoutTensorsIsAWholeFile) {
  const Header header{std::vector<Tensor>()};
  EXPECT_EQ(header.file_bytes(), Header::kDataAlignment);
  const std::string start = header.serialize();
  EXPECT_THAT(Header::parse(bytes_of(start), start.size(), "x").tensors(), testing::IsEmpty());
}

TEST(SafetensorsHeader, RefusesTensorsThatNoFileHolds) {
  constexpr int64_t kHuge = int64_t{1} << 61;
  EXPECT_THAT(message_of<ConfigError>([] { Header({{"a"}, {"b"}, {"a"}}); }), HasSubstr("'a'"));
  EXPECT_THAT(message_of<ConfigError>([] {
                Header({{"big", ElementType::f32, {kHuge}}});
              }),
              HasSubstr("'big'"));
  EXPECT_THAT(message_of<ConfigError>([] {
                Header({{"one", ElementType::u8, {kHuge}},
                        {"two", ElementType::u8, {kHuge}},
                        {"three", ElementType::u8, {kHuge}},
                        {"four", ElementType::u8, {kHuge}}});
              }),
              HasSubstr("'four'"));
  EXPECT_THAT(message_of<ConfigError>([] { Header({{"\xff"}}); }), HasSubstr("UTF-8"));
}

struct DamagedHeader {
  std::string text;
  std::string says;  // in the message
};
void PrintTo(const DamagedHeader& damaged, std::ostream* out) { *out << damaged.text; }

class SafetensorsDamage : public testing::TestWithParam<DamagedHeader> {};

// Before 8 bytes of data.
TEST_P(SafetensorsDamage, IsRefusedInOneSentenceThatNamesIt) {
  const std::string message = message_of<CorruptionError>([] { parse(GetParam().text, 8); });
  EXPECT_THAT(message, AllOf(HasSubstr("x.safetensors: "), HasSubstr(GetParam().says),
                             HasSubstr("so it is damaged")));
}

std::string one(const std::string& body) { return "{\"a\":{" + body + "}}"; }
std::string placed(const std::string& offsets) {
  return R"(:{"dtype":"F32","shape":[1],"data_offsets":)" + offsets + "}";
}

INSTANTIATE_TEST_SUITE_P(
    Headers, SafetensorsDamage,
    testing::Values(
        DamagedHeader{"", "begin with a brace"}, DamagedHeader{"[]", "begin with a brace"},
        DamagedHeader{"{", "JSON"}, DamagedHeader{"{}x", "JSON"},
        DamagedHeader{"{} // comment", "JSON"}, DamagedHeader{"{\"\xff\":{}}", "JSON"},
        DamagedHeader{"{}", "8 bytes behind the last tensor"},
        DamagedHeader{"{\"a\":3}", "'a' is a number"}, DamagedHeader{"{\"a\":[]}", "'a' is a list"},
        DamagedHeader{"{\"__metadata__\":{\"k\":1}}", "metadata holds a number"},
        DamagedHeader{"{\"__metadata__\":{\"k\":\"\",\"k\":\"\"}}", "twice"},
        DamagedHeader{"{\"__metadata__\":{},\"__metadata__\":{}}", "twice"},
        DamagedHeader{one(""), "lacks its dtype"},
        DamagedHeader{one(R"("dtype":"F32","data_offsets":[0,8])"), "lacks its shape"},
        DamagedHeader{one(R"("dtype":"F32","shape":[2])"), "lacks its data_offsets"},
        DamagedHeader{one(R"("dtype":"F33","shape":[2],"data_offsets":[0,8])"), "'F33'"},
        DamagedHeader{one(R"("dtype":7)"), "a number in its dtype"},
        DamagedHeader{one(R"("dtype":{})"), "an object in its dtype"},
        DamagedHeader{one(R"("dtype":"F32","dtype":"F32")"), "its dtype twice"},
        DamagedHeader{one(R"("type":"F32")"), "none of dtype"},
        DamagedHeader{one(R"("shape":"2")"), "a string in its shape"},
        DamagedHeader{one(R"("shape":[-2])"), "a negative number in its shape"},
        DamagedHeader{one(R"("shape":[2.0])"), "a fraction in its shape"},
        DamagedHeader{one(R"("shape":[[2]])"), "a list in its shape"},
        DamagedHeader{one(R"("shape":[9223372036854775808])"), "without bounds"},
        DamagedHeader{one(R"("shape":[18446744073709551616])"), "a fraction in its shape"},
        DamagedHeader{one(R"("shape":[1e999])"), "JSON"},
        DamagedHeader{one(R"("data_offsets":[0])"), "two numbers"},
        DamagedHeader{one(R"("data_offsets":[0,4,8])"), "two numbers"},
        DamagedHeader{one(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"), "takes 12 bytes"},
        DamagedHeader{one(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), "are 8 and 0"},
        // 2^32 * 2^32 * 4 is 0 in 64 bits.
        DamagedHeader{one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"),
                      "larger than any file"},
        DamagedHeader{one(R"("dtype":"F32","shape":[3],"data_offsets":[0,12])"),
                      "'a' ends at byte 12 of data which has 8"},
        DamagedHeader{one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"), "4 bytes behind"},
        DamagedHeader{"{\"a\"" + placed("[0,4]") + ",\"b\"" + placed("[2,6]") + "}",
                      "'b' overlaps"},
        DamagedHeader{"{\"a\"" + placed("[4,8]") + "}", "'a' leaves a gap before it, from byte 0"},
        DamagedHeader{"{\"a\"" + placed("[0,4]") + ",\"a\"" + placed("[4,8]") + "}",
                      "'a' appears twice"}));

TEST(SafetensorsHeader, RefusesALengthThatItsFileCannotHave) {
  const auto message = [](uint64_t length, uint64_t file_bytes) {
    std::string start(sizeof(length), '\0');
    std::memcpy(start.data(), &length, sizeof(length));
    return message_of<CorruptionError>(
        [&] { Header::data_begin(bytes_of(start), file_bytes, "x.safetensors"); });
  };
  EXPECT_THAT(message(0, 7), HasSubstr("7 bytes"));
  EXPECT_THAT(message(100, 107), HasSubstr("100 bytes of a file of 107"));
  EXPECT_THAT(message(~uint64_t{0}, 1 << 20), HasSubstr("at most 100000000"));
  EXPECT_THAT(message(100'000'001, uint64_t{1} << 40), HasSubstr("at most 100000000"));
}

class SafetensorsFile : public testing::Test {
 protected:
  const TemporaryDirectory dir_;
  const std::string path_ = dir_.file("x.safetensors");
  const Header header_{{{"a", ElementType::f32, {2, 2}}, {"b", ElementType::u8, {3}}}};
};

TEST_F(SafetensorsFile, HoldsWhatSeveralWroteInPieces) {
  const std::string first = "ABCDEFG", rest = "HIJKLMNOP", b = "xyz";
  {
    File created = File::create(path_, header_);
    File other = File::open_to_write(path_);
    created.write(created.tensor("a"), 0, bytes_of(first));
    other.write(other.tensor("a"), first.size(), bytes_of(rest));
    other.write(other.tensor("b"), 0, bytes_of(b));
    other.sync();
  }
  const File file = File::open(path_);
  EXPECT_EQ(file.header().serialize(), header_.serialize());
  std::string read(6, '\0');
  file.read(file.tensor("a"), 4, std::as_writable_bytes(std::span(read)));
  EXPECT_EQ(read, "EFGHIJ");
  read.resize(3);
  file.read(file.tensor("b"), 0, std::as_writable_bytes(std::span(read)));
  EXPECT_EQ(read, b);
}

TEST_F(SafetensorsFile, WhatIsNotWrittenYetIsZeros) {
  const File file = File::create(path_, header_);
  std::string read(16, 'x');
  file.read(file.tensor("a"), 0, std::as_writable_bytes(std::span(read)));
  EXPECT_EQ(read, std::string(16, '\0'));
}

TEST_F(SafetensorsFile, RefusesWhatItDoesNotHave) {
  File file = File::create(path_, header_);
  EXPECT_THAT(message_of<ConfigError>([&] { file.tensor("c"); }),
              AllOf(HasSubstr(path_), HasSubstr("'c'")));
  std::string bytes(4, '\0');
  const auto out = std::as_writable_bytes(std::span(bytes));
  EXPECT_THROW(file.read(file.tensor("b"), 0, out), Error);
  EXPECT_THROW(file.write(file.tensor("b"), ~uint64_t{0}, out), Error);
}

TEST_F(SafetensorsFile, IsNotCreatedOverAnother) {
  File::create(path_, header_);
  EXPECT_EQ(message_of<IoError>([&] { File::create(path_, header_); }),
            "cannot create " + path_ + ": File exists");
}

TEST_F(SafetensorsFile, ThatNoDiskHoldsSaysHowMuchItNeeds) {
  const Header huge({{"a", ElementType::u8, {int64_t{1} << 60}}});
  EXPECT_THAT(message_of<IoError>([&] { File::create(path_, huge); }),
              AllOf(HasSubstr("cannot reserve 1.0 EiB"), HasSubstr("free")));
  EXPECT_TRUE(dir_.empty());
}

TEST_F(SafetensorsFile, CutShortIsNamed) {
  File::create(path_, header_);
  std::filesystem::resize_file(path_, header_.file_bytes() - 1);
  EXPECT_THAT(message_of<CorruptionError>([&] { File::open(path_); }),
              AllOf(HasSubstr(path_), HasSubstr("'b' ends at byte 19 of data which has 18")));
  for (const uint64_t bytes : {0, 7, 100}) {
    std::filesystem::resize_file(path_, bytes);
    EXPECT_THROW(File::open(path_), CorruptionError) << bytes;
  }
}

// Between open and read: the error says where.
TEST_F(SafetensorsFile, CutShortUnderAReaderIsAnErrorAtItsOffset) {
  const File file = File::create(path_, header_);
  std::filesystem::resize_file(path_, header_.data_begin() + 6);
  std::string bytes(8, '\0');
  try {
    file.read(file.tensor("a"), 4, std::as_writable_bytes(std::span(bytes)));
    FAIL() << "read past the end";
  } catch (const IoError& error) {
    EXPECT_EQ(error.path, path_);
    EXPECT_EQ(error.offset, header_.data_begin() + 6);
    EXPECT_EQ(error.error_number, 0);
  }
}

TEST_F(SafetensorsFile, ThatMayNotBeWrittenIsRead) {
  File::create(path_, header_);
  std::filesystem::permissions(path_, std::filesystem::perms::owner_read);
  File file = File::open(path_);
  const std::string bytes = "xyz";
  EXPECT_THROW(file.write(file.tensor("b"), 0, bytes_of(bytes)), IoError);
}

}  // namespace
}  // namespace strata::safetensors
