// What g++ 12 and CUDA's static runtime would take from a system newer than torch's own wheels ask for (manylinux_2_28:
// glibc 2.28, libstdc++ of g++ 8). What stands here is not asked for, so the library runs wherever torch's do.
// wheel.newer() in release/ tells what is.

#include <new>
#include <sstream>

#if defined(__GLIBC__) && defined(__GLIBCXX__)

// Since 2.32, by which shared_ptr counts without atomics where the process has one thread. This one may have more.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}

// What <sstream> declares to be in libstdc++, since g++ 9 and 11.
template std::ostringstream::basic_ostringstream();
template std::stringstream::basic_stringstream();
template std::string std::stringbuf::str() const&;
template std::string std::stringbuf::str() &&;

// What std::allocator calls, since g++ 11.
void std::__throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// Functions of libcudart_static.a that 2.34 moved into libc, under a new version, from libdl, libpthread and librt,
// which torch's libraries bring. What else refers to them here finds these first, which jump to those of the old
// version.
#if defined(PYSEL_CUDA) && defined(__x86_64__)
asm(R"(
  .macro older version, names:vararg
  .irp name, \names
  .symver older_\name, \name@GLIBC_\version
  .globl \name
  .hidden \name
  .type \name, @function
\name:
  jmp *older_\name@GOTPCREL(%rip)
  .endr
  .endm

  .pushsection .text
  older 2.2.5, dlclose, dlerror, dlopen, dlsym, dlvsym
  older 2.3.4, dlmopen
  older 2.2.5, pthread_condattr_setpshared, pthread_create, pthread_detach, pthread_getspecific, pthread_join
  older 2.2.5, pthread_key_create, pthread_key_delete, pthread_kill, pthread_mutex_trylock, pthread_mutexattr_destroy
  older 2.2.5, pthread_mutexattr_init, pthread_mutexattr_setpshared, pthread_mutexattr_settype, pthread_once
  older 2.2.5, pthread_rwlock_destroy, pthread_rwlock_init, pthread_rwlock_rdlock, pthread_rwlock_timedrdlock
  older 2.2.5, pthread_rwlock_timedwrlock, pthread_rwlock_tryrdlock, pthread_rwlock_trywrlock, pthread_rwlock_unlock
  older 2.2.5, pthread_rwlock_wrlock, pthread_rwlockattr_destroy, pthread_rwlockattr_init, pthread_rwlockattr_setpshared
  older 2.2.5, pthread_setspecific, pthread_spin_destroy, pthread_spin_init, pthread_spin_lock, pthread_spin_trylock
  older 2.2.5, pthread_spin_unlock, sem_destroy, sem_init, sem_post, sem_timedwait, sem_trywait, sem_wait
  older 2.2.5, shm_open, shm_unlink
  .popsection
)");
#endif

#endif
