// Starts a program as the ranks of a run on this machine that meet over TCP, as torchrun does, and
// ends as the first of them that fails.
//
//   start_ranks RANKS PROGRAM ARGUMENT...
#include <arpa/inet.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "engine/comm/socket.h"

namespace {

void set(const char* variable, int value) {
  setenv(variable, std::to_string(value).c_str(), /*overwrite=*/1);
}

int free_port() {
  using strata::engine::Socket;
  return ntohs(Socket::listen({htonl(INADDR_LOOPBACK), 0}, 1).address().port);
}

}  // namespace

int main(int argc, char** argv) {
  const int ranks = argc > 2 ? std::atoi(argv[1]) : 0;
  if (ranks < 1) {
    std::fprintf(stderr, "usage: %s RANKS PROGRAM ARGUMENT...\n", argv[0]);
    return 2;
  }
  setenv("MASTER_ADDR", "127.0.0.1", 1);
  set("MASTER_PORT", free_port());
  set("WORLD_SIZE", ranks);
  set("LOCAL_WORLD_SIZE", ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    set("RANK", rank);
    set("LOCAL_RANK", rank);
    if (fork() == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);  // where the tests are ended, so are the ranks
      execv(argv[2], argv + 2);
      std::perror(argv[2]);
      _exit(2);
    }
  }
  int first_failure = 0;
  for (int status = 0; wait(&status) > 0;) {
    if (status != 0 && first_failure == 0) {
      first_failure = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
  }
  return first_failure;
}
