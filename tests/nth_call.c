/* Let the N-th call that changes a file below a folder fail, or kill the process there; set the clock.
 *
 * Loaded by LD_PRELOAD. KRONOS_FAULTS_ROOT names the folder; KRONOS_FAULTS_STATE names a file of `struct state`, which
 * the test writes and all processes of a command share, so that calls are counted over all of them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum fault { NONE = 0, FULL_DISK = 1, IO_ERROR = 2, KILL = 3 };

struct state {
    int64_t calls;    /* calls so far */
    int64_t nth;      /* the call that fails, counted from 1; 0 for none */
    int64_t fault;    /* enum fault */
    int64_t failed;   /* calls that failed */
    int64_t listing;  /* 1 to append each call to the file KRONOS_FAULTS_STATE.calls */
    int64_t clock;    /* seconds between this process' clock and the true time */
    char where[256];  /* name and path of the first call that failed */
};

static struct state *state;
static char root[PATH_MAX], list_path[PATH_MAX];
static size_t root_length;

#define REAL(name) (__typeof__(&name)) dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void) {
    const char *folder = getenv("KRONOS_FAULTS_ROOT"), *file = getenv("KRONOS_FAULTS_STATE");
    if (folder == NULL || file == NULL) return;
    int (*real_open)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    int descriptor = real_open(file, O_RDWR);
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped == MAP_FAILED) return;
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    snprintf(list_path, sizeof list_path, "%s.calls", file);
    state = mapped;
}

static int below_root(const char *path) {
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == '\0');
}

/* Write the absolute path of a file into `absolute`; symbolic links are not followed. */
static int path_at(int folder, const char *path, char *absolute) {
    if (path == NULL) return 0;
    char base[PATH_MAX] = "";
    if (path[0] != '/') {
        char link[64];
        if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, base, sizeof base - 2);
        if (length < 0) return 0;
        base[length] = '/';
        base[length + 1] = '\0';
    }
    return snprintf(absolute, PATH_MAX, "%s%s", base, path) < PATH_MAX;
}

static int path_of(int descriptor, char *absolute) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, absolute, PATH_MAX - 1);
    if (length < 0) return 0;
    absolute[length] = '\0';
    return 1;
}

static void list_call(const char *name, const char *path) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s %s\n", name, path);
    int descriptor = syscall(SYS_openat, AT_FDCWD, list_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (descriptor < 0) return;
    syscall(SYS_write, descriptor, line, length);
    syscall(SYS_close, descriptor);
}

/* Count a call, and return the fault that it meets. A disk that is full stays full; an I/O error comes once. */
static enum fault meet(const char *name, const char *path, int takes_space) {
    if (state == NULL || !below_root(path)) return NONE;
    int64_t call = __atomic_add_fetch(&state->calls, 1, __ATOMIC_SEQ_CST);
    if (state->listing) list_call(name, path + root_length);
    int64_t nth = state->nth, fault = state->fault;
    if (nth == 0 || call < nth) return NONE;
    if (fault == FULL_DISK ? !takes_space : call != nth) return NONE;
    if (__atomic_fetch_add(&state->failed, 1, __ATOMIC_SEQ_CST) == 0)
        snprintf(state->where, sizeof state->where, "%s %s", name, path + root_length);
    return fault;
}

static int fails(enum fault fault) {
    if (fault == NONE) return 0;
    if (fault == KILL) kill(getpid(), SIGKILL);
    errno = fault == FULL_DISK ? ENOSPC : EIO;
    return 1;
}

#define PATH_CALL(type, name, parameters, arguments, folder, path, takes_space)                 \
    type name parameters {                                                                       \
        type(*real) parameters = (type(*) parameters)dlsym(RTLD_NEXT, #name);                    \
        char absolute[PATH_MAX];                                                                 \
        if (state != NULL && path_at(folder, path, absolute) && fails(meet(#name, absolute, takes_space))) return -1; \
        return real arguments;                                                                   \
    }

#define DESCRIPTOR_CALL(type, name, parameters, arguments, descriptor, takes_space)              \
    type name parameters {                                                                       \
        type(*real) parameters = (type(*) parameters)dlsym(RTLD_NEXT, #name);                    \
        char absolute[PATH_MAX];                                                                 \
        if (state != NULL && path_of(descriptor, absolute) && fails(meet(#name, absolute, takes_space))) return -1; \
        return real arguments;                                                                   \
    }

/* A kill in mid-write leaves half of the bytes. */
#define WRITE_CALL(name, parameters, arguments, half)                                            \
    ssize_t name parameters {                                                                    \
        ssize_t(*real) parameters = (ssize_t(*) parameters)dlsym(RTLD_NEXT, #name);              \
        char absolute[PATH_MAX];                                                                 \
        if (state != NULL && descriptor > 2 && path_of(descriptor, absolute)) {                  \
            enum fault fault = meet(#name, absolute, 1);                                         \
            if (fault == KILL) real half;                                                        \
            if (fails(fault)) return -1;                                                         \
        }                                                                                        \
        return real arguments;                                                                   \
    }

WRITE_CALL(write, (int descriptor, const void *bytes, size_t count), (descriptor, bytes, count),
           (descriptor, bytes, count / 2))
WRITE_CALL(pwrite, (int descriptor, const void *bytes, size_t count, off_t offset),
           (descriptor, bytes, count, offset), (descriptor, bytes, count / 2, offset))
WRITE_CALL(pwrite64, (int descriptor, const void *bytes, size_t count, off64_t offset),
           (descriptor, bytes, count, offset), (descriptor, bytes, count / 2, offset))
WRITE_CALL(writev, (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count),
           (descriptor, parts, count / 2))
WRITE_CALL(copy_file_range,
           (int source, off64_t *from, int descriptor, off64_t *to, size_t count, unsigned int flags),
           (source, from, descriptor, to, count, flags), (source, from, descriptor, to, count / 2, flags))
WRITE_CALL(sendfile, (int descriptor, int source, off_t *offset, size_t count), (descriptor, source, offset, count),
           (descriptor, source, offset, count / 2))
WRITE_CALL(sendfile64, (int descriptor, int source, off64_t *offset, size_t count),
           (descriptor, source, offset, count), (descriptor, source, offset, count / 2))

DESCRIPTOR_CALL(int, fsync, (int descriptor), (descriptor), descriptor, 1)
DESCRIPTOR_CALL(int, fdatasync, (int descriptor), (descriptor), descriptor, 1)
DESCRIPTOR_CALL(int, ftruncate, (int descriptor, off_t length), (descriptor, length), descriptor, length > 0)
DESCRIPTOR_CALL(int, ftruncate64, (int descriptor, off64_t length), (descriptor, length), descriptor, length > 0)

PATH_CALL(int, rename, (const char *from, const char *to), (from, to), AT_FDCWD, to, 0)
PATH_CALL(int, renameat, (int folder, const char *from, int other, const char *to), (folder, from, other, to), other,
          to, 0)
PATH_CALL(int, renameat2, (int folder, const char *from, int other, const char *to, unsigned int flags),
          (folder, from, other, to, flags), other, to, 0)
PATH_CALL(int, link, (const char *from, const char *to), (from, to), AT_FDCWD, to, 1)
PATH_CALL(int, linkat, (int folder, const char *from, int other, const char *to, int flags),
          (folder, from, other, to, flags), other, to, 1)
PATH_CALL(int, symlink, (const char *target, const char *path), (target, path), AT_FDCWD, path, 1)
PATH_CALL(int, symlinkat, (const char *target, int folder, const char *path), (target, folder, path), folder, path, 1)
PATH_CALL(int, unlink, (const char *path), (path), AT_FDCWD, path, 0)
PATH_CALL(int, unlinkat, (int folder, const char *path, int flags), (folder, path, flags), folder, path, 0)
PATH_CALL(int, rmdir, (const char *path), (path), AT_FDCWD, path, 0)
PATH_CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path, 1)
PATH_CALL(int, mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode), folder, path, 1)

/* Opening counts where it can create or empty a file. */
#define OPEN_CALL(name, parameters, types, folder, before)                                         \
    int name parameters {                                                                        \
        mode_t mode = 0;                                                                         \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                     \
            va_list rest;                                                                        \
            va_start(rest, flags);                                                               \
            mode = va_arg(rest, mode_t);                                                         \
            va_end(rest);                                                                        \
        }                                                                                        \
        char absolute[PATH_MAX];                                                                 \
        if (state != NULL && flags & (O_CREAT | O_TRUNC) && path_at(folder, path, absolute) &&   \
            fails(meet(#name, absolute, 1)))                                                     \
            return -1;                                                                           \
        return ((int(*) types)dlsym(RTLD_NEXT, #name)) before;                                      \
    }

OPEN_CALL(open, (const char *path, int flags, ...), (const char *, int, ...), AT_FDCWD, (path, flags, mode))
OPEN_CALL(open64, (const char *path, int flags, ...), (const char *, int, ...), AT_FDCWD, (path, flags, mode))
OPEN_CALL(openat, (int folder, const char *path, int flags, ...), (int, const char *, int, ...), folder, (folder, path, flags, mode))
OPEN_CALL(openat64, (int folder, const char *path, int flags, ...), (int, const char *, int, ...), folder, (folder, path, flags, mode))

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (result == 0 && state != NULL && clock == CLOCK_REALTIME) time->tv_sec += state->clock;
    return result;
}

/* C's and C++'s own streams write by calls inside the C library, which cannot be counted; their opening can. */
FILE *fopen(const char *path, const char *mode) {
    FILE *(*real)(const char *, const char *) = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen");
    char absolute[PATH_MAX];
    if (state != NULL && strpbrk(mode, "wa+") != NULL && path_at(AT_FDCWD, path, absolute) &&
        fails(meet("fopen", absolute, 1)))
        return NULL;
    return real(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    FILE *(*real)(const char *, const char *) = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen64");
    char absolute[PATH_MAX];
    if (state != NULL && strpbrk(mode, "wa+") != NULL && path_at(AT_FDCWD, path, absolute) &&
        fails(meet("fopen64", absolute, 1)))
        return NULL;
    return real(path, mode);
}
