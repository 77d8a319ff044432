// MPI as this process has it: initialized when first needed, finalized at an orderly end.
//
// Without mpi.h, so that it compiles where MPI is absent; handles are MPI's Fortran handles.
#pragma once

#include <atomic>

namespace strata::engine {

// One object a process. Any thread, but for the first call of get().
class MpiProcess {
 public:
  // Initializes MPI unless the program has done so, which waits for the other processes without
  // end. Throws ConfigError where MPI cannot serve several threads at a time.
  static MpiProcess& get();

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool one_machine() const { return one_machine_; }
  // Of all processes, ours alone; its errors are returned, not fatal.
  int communicator() const { return communicator_; }

  // Between the two a transport lives. Finalizing waits for the other processes, so it is left out
  // when a transport was not left in order: where a peer is lost it would wait for ever.
  // begin_transport() gives the transport a message tag of its own, the same on all ranks. Throws
  // CommError once a transport has ended out of order: MPI may still be moving what it had under
  // way, into memory that is gone.
  int begin_transport();
  void end_transport(bool in_order);

 private:
  MpiProcess();
  ~MpiProcess();

  bool ours_to_finalize_ = false;
  int rank_ = 0;
  int size_ = 1;
  bool one_machine_ = true;
  int communicator_ = 0;
  int max_tag_ = 0;
  std::atomic<int> transports_ = 0;
  std::atomic<int> unfinished_transports_ = 0;
  std::atomic<bool> failed_ = false;  // a transport ended out of order
};

}  // namespace strata::engine
