// What a container's policy or a lesser file system does, for one system call and one thread.
#pragma once

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <thread>

namespace strata::io {

struct ForbiddenSyscall {
  uint32_t number = 0;
  uint32_t argument = 0;       // its index, looked at where `argument_bits` are given
  uint32_t argument_bits = 0;  // only calls with one of these bits set are refused; 0: all
  uint32_t error_number = 0;   // what the caller gets
};

inline bool forbid_to_this_thread(const ForbiddenSyscall& call) {
  const auto argument = static_cast<uint32_t>(offsetof(seccomp_data, args)) + 8 * call.argument;
  const uint8_t skip_if_clear = call.argument_bits == 0 ? 0 : 1;
  const uint32_t bits = call.argument_bits == 0 ? UINT32_MAX : call.argument_bits;
  std::array<sock_filter, 6> program = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call.number, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 0, skip_if_clear),
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
