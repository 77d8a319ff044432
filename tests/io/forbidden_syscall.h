// What a container's policy or a lesser file system does, for one system call and one thread.
#pragma once

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <thread>

namespace strata::io {

struct ForbiddenSyscall {
  uint32_t number = 0;
  // Index of an argument, looked at where `argument_bits` or `argument_value` are given: only calls
  // with one of these bits set in it, or with exactly this value, are refused.
  uint32_t argument = 0;
  uint32_t argument_bits = 0;
  std::optional<uint32_t> argument_value = {};
  uint32_t error_number = 0;  // what the caller gets
};

inline bool forbid_to_this_thread(const ForbiddenSyscall& call) {
  const auto argument = static_cast<uint32_t>(offsetof(seccomp_data, args)) + 8 * call.argument;
  const bool any = call.argument_bits == 0 && !call.argument_value;
  const uint8_t skip = any ? 0 : 1;
  const auto test = static_cast<uint16_t>(call.argument_value ? BPF_JEQ : BPF_JSET);
  const uint32_t operand = call.argument_value.value_or(call.argument_bits);
  std::array<sock_filter, 6> program = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call.number, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument),
      BPF_JUMP(static_cast<uint16_t>(BPF_JMP | BPF_K | test), operand, 0, skip),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | call.error_number),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog filter = {program.size(), program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) == 0;
}

// Runs `action` on a thread that may not make the call; false where filters cannot be installed.
template <typename Action>
bool run_forbidding(const ForbiddenSyscall& call, const Action& action) {
  bool forbidden = false;
  std::thread([&] {
    forbidden = forbid_to_this_thread(call);
    if (forbidden) action();
  }).join();
  return forbidden;
}

}  // namespace strata::io
