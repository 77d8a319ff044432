#include "engine/comm/mpi_process.h"

#include <mpi.h>

#include "strata/error.h"

namespace strata::engine {
namespace {

int size_of(MPI_Comm communicator) {
  int size = 0;
  MPI_Comm_size(communicator, &size);
  return size;
}

bool all_on_one_machine(MPI_Comm world) {
  MPI_Comm machine = MPI_COMM_NULL;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
  int same = size_of(machine) == size_of(world) ? 1 : 0;
  MPI_Comm_free(&machine);
  MPI_Allreduce(MPI_IN_PLACE, &same, 1, MPI_INT, MPI_MIN, world);
  return same != 0;
}

}  // namespace

MpiProcess& MpiProcess::get() {
  static MpiProcess process;
  return process;
}

MpiProcess::MpiProcess() {
  int initialized = 0;
  int threads = MPI_THREAD_SINGLE;
  MPI_Initialized(&initialized);
  if (initialized == 0) {
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &threads);
    ours_to_finalize_ = true;
  } else {
    MPI_Query_thread(&threads);
  }
  // Every communicator is used from its queue's thread, and a process may have several.
  if (threads < MPI_THREAD_MULTIPLE) {
    throw ConfigError(
        "MPI does not serve several threads at a time: have it initialized with "
        "MPI_THREAD_MULTIPLE");
  }
  MPI_Comm ours = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &ours);
  MPI_Comm_set_errhandler(ours, MPI_ERRORS_RETURN);
  communicator_ = MPI_Comm_c2f(ours);
  MPI_Comm_rank(ours, &rank_);
  size_ = size_of(ours);
  one_machine_ = all_on_one_machine(ours);

  int* max_tag = nullptr;
  int found = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &max_tag, &found);
  max_tag_ = found != 0 ? *max_tag : 32767;  // what the standard promises
}

MpiProcess::~MpiProcess() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (ours_to_finalize_ && unfinished_transports_ == 0 && finalized == 0) MPI_Finalize();
}

void MpiProcess::end_transport(bool in_order) {
  if (in_order) {
    --unfinished_transports_;
  } else {
    failed_ = true;
  }
}

int MpiProcess::begin_transport() {
  if (failed_) {
    throw CommError("a run of this process has failed, and MPI cannot begin another: start anew");
  }
  ++unfinished_transports_;
  return transports_++ % max_tag_;
}

}  // namespace strata::engine
