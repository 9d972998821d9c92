/* File operations below one folder: counted, recorded, failed, delayed, or ended with a kill.
 *
 * Loaded with LD_PRELOAD. Nothing happens until chaos_arm is called; from then on every operation that changes files
 * below the folder is numbered from 0, in all processes that are forked from this one together.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL, FAIL_ONCE, FAIL_FROM, DELAY }; /* what happens at the chosen operation */

struct shared {
    long count;
};
static struct shared *shared;
static char folder[PATH_MAX];
static size_t folder_length;
static int armed, action, error, log_fd = -1;
static long chosen;
static __thread long current; /* the number of the operation under way */

/* Memory that forked processes have in common. Called once, by the process that forks the runs. */
void chaos_prepare(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

long chaos_count(void) { return shared->count; }

/* at: the number of the operation; log: a descriptor that records of all operations are written to, or -1. */
void chaos_arm(const char *path, int what, long at, int number, int log) {
    snprintf(folder, sizeof folder, "%s", path);
    folder_length = strlen(folder);
    action = what, chosen = at, error = number, log_fd = log, shared->count = 0, armed = 1;
}

/* ------------------------------------------------------------------ which files */

static int below(const char *path) {
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || path[folder_length] == 0);
}

static int path_of_fd(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    out[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static void absolute(int dir, const char *path, char *out) {
    char base[PATH_MAX];
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    if (dir == AT_FDCWD ? getcwd(base, sizeof base) == NULL : !path_of_fd(dir, base)) base[0] = 0;
    if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) out[0] = 0;
}

/* ------------------------------------------------------------------ one operation */

/* Counts an operation and does what was chosen. Returns 1 if it must fail; errno is set then. */
static int before(int needs_room) {
    long number = current = __atomic_fetch_add(&shared->count, 1, __ATOMIC_SEQ_CST);
    if (action == COUNT || number < chosen) return 0;
    if (action == FAIL_FROM && (needs_room || error != ENOSPC)) {
        errno = error;
        return 1;
    }
    if (number > chosen) return 0;
    if (action == KILL) {
        syscall(SYS_kill, getpid(), SIGKILL);
    } else if (action == FAIL_ONCE) {
        errno = error;
        return 1;
    } else if (action == DELAY) {
        struct timespec pause = {error / 1000, error % 1000 * 1000000L};
        nanosleep(&pause, NULL);
    }
    return 0;
}

/* One record: `number name inode offset length\tpath\tpath\n`, and `length` bytes of data. */
static void record(const char *name, ino_t inode, long offset, const char *from, const char *to, const void *data,
                   size_t length) {
    if (log_fd < 0) return;
    int saved = errno;
    char head[2 * PATH_MAX + 128];
    int size = snprintf(head, sizeof head, "%ld %s %lu %ld %zu\t%s\t%s\n", current, name, (unsigned long)inode, offset, length, from, to);
    struct iovec parts[2] = {{head, size}, {(void *)data, length}};
    syscall(SYS_writev, log_fd, parts, length ? 2 : 1);
    errno = saved;
}

static ino_t inode_of(int fd) {
    struct stat about;
    return fstat(fd, &about) == 0 ? about.st_ino : 0;
}

/* ------------------------------------------------------------------ opening */

static int do_open(int dir, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    int writes = (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) && !(flags & O_PATH);
    if (!armed || !writes) return syscall(SYS_openat, dir, path, flags | O_LARGEFILE, mode);
    absolute(dir, path, full);
    if (!below(full)) return syscall(SYS_openat, dir, path, flags | O_LARGEFILE, mode);
    if (before(1)) return -1;
    struct stat about;
    int existed = fstatat(dir, path, &about, 0) == 0;
    int fd = syscall(SYS_openat, dir, path, flags | O_LARGEFILE, mode);
    if (fd >= 0) record(existed ? (flags & O_TRUNC ? "truncate" : "open") : "create", inode_of(fd), 0, full, "", 0, 0);
    return fd;
}

#define OPEN_MODE(last)                                   \
    mode_t mode = 0;                                      \
    if (flags & (O_CREAT | O_TMPFILE)) {                  \
        va_list rest;                                     \
        va_start(rest, last);                             \
        mode = va_arg(rest, mode_t);                      \
        va_end(rest);                                     \
    }
int open(const char *path, int flags, ...) { OPEN_MODE(flags) return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { OPEN_MODE(flags) return do_open(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { OPEN_MODE(flags) return do_open(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { OPEN_MODE(flags) return do_open(dir, path, flags, mode); }

/* ------------------------------------------------------------------ writing */

static int is_ours(int fd, char *path) { return armed && fd != log_fd && path_of_fd(fd, path) && below(path); }

/* A full disk takes the first half of what is written. */
static size_t fitting(size_t length) {
    return action == FAIL_FROM && error == ENOSPC && shared->count == chosen && length > 1 ? length / 2 : length;
}

ssize_t write(int fd, const void *data, size_t length) {
    char path[PATH_MAX];
    if (!is_ours(fd, path)) return syscall(SYS_write, fd, data, length);
    size_t half = fitting(length);
    if (half < length) {
        current = __atomic_fetch_add(&shared->count, 1, __ATOMIC_SEQ_CST);
        length = half;
    } else if (before(1)) {
        return -1;
    }
    ssize_t done = syscall(SYS_write, fd, data, length);
    if (done > 0) record("write", inode_of(fd), lseek(fd, 0, SEEK_CUR) - done, path, "", data, done);
    return done;
}

static ssize_t do_pwrite(int fd, const void *data, size_t length, off_t offset) {
    char path[PATH_MAX];
    if (!is_ours(fd, path)) return syscall(SYS_pwrite64, fd, data, length, offset);
    if (before(1)) return -1;
    ssize_t done = syscall(SYS_pwrite64, fd, data, length, offset);
    if (done > 0) record("write", inode_of(fd), offset, path, "", data, done);
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return do_pwrite(fd, data, length, offset); }
ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset) { return do_pwrite(fd, data, length, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (!is_ours(fd, path)) return syscall(SYS_writev, fd, parts, count);
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = write(fd, parts[i].iov_base, parts[i].iov_len);
        if (done < 0) return total ? total : done;
        total += done;
    }
    return total;
}

/* Copies inside the kernel: what they wrote is read back for the record. */
static void record_copied(int fd, const char *path, ssize_t done) {
    if (done <= 0 || log_fd < 0) return;
    off_t start = lseek(fd, 0, SEEK_CUR) - done;
    char *data = malloc(done);
    int reader = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY, 0);
    if (pread(reader, data, done, start) == done) record("write", inode_of(fd), start, path, "", data, done);
    close(reader);
    free(data);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t length) {
    char path[PATH_MAX];
    if (!is_ours(out, path)) return syscall(SYS_sendfile, out, in, offset, length);
    if (before(1)) return -1;
    ssize_t done = syscall(SYS_sendfile, out, in, offset, length);
    record_copied(out, path, done);
    return done;
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t length) { return sendfile(out, in, offset, length); }

static int do_ftruncate(int fd, off_t length) {
    char path[PATH_MAX];
    if (!is_ours(fd, path)) return syscall(SYS_ftruncate, fd, length);
    if (before(0)) return -1;
    int code = syscall(SYS_ftruncate, fd, length);
    if (code == 0) record("resize", inode_of(fd), length, path, "", 0, 0);
    return code;
}
int ftruncate(int fd, off_t length) { return do_ftruncate(fd, length); }
int ftruncate64(int fd, off64_t length) { return do_ftruncate(fd, length); }

static int do_sync(int fd, long call) {
    char path[PATH_MAX];
    if (!is_ours(fd, path)) return syscall(call, fd);
    if (before(1)) return -1;
    int code = syscall(call, fd);
    if (code == 0) record("fsync", inode_of(fd), 0, path, "", 0, 0);
    return code;
}
int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }

/* ------------------------------------------------------------------ names */

/* An operation on one name (`from` is a link's text, not a name, where `two` is 0) or on two. */
static int on_names(const char *name, long call, int dir, const char *path, int dir2, const char *path2, int flags) {
    char full[PATH_MAX] = "", full2[PATH_MAX] = "";
    int link_text = strcmp(name, "symlink") == 0, room = strcmp(name, "unlink") && strcmp(name, "rmdir");
    if (armed) {
        if (link_text) snprintf(full, sizeof full, "%s", path);
        else absolute(dir, path, full);
        if (path2) absolute(dir2, path2, full2);
    }
    int ours = armed && ((!link_text && below(full)) || (path2 && below(full2)));
    /* POSIX lets calls on open files be interrupted, not those on names. */
    if (ours && error == EINTR) current = __atomic_fetch_add(&shared->count, 1, __ATOMIC_SEQ_CST);
    else if (ours && before(room)) return -1;
    int code;
    if (link_text) code = syscall(call, path, dir2, path2);
    else if (path2) code = syscall(call, dir, path, dir2, path2, flags);
    else code = syscall(call, dir, path, flags);
    if (ours && code == 0) record(name, 0, 0, full, full2, 0, 0);
    return code;
}

int rename(const char *a, const char *b) { return on_names("rename", SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 0); }
int renameat(int d, const char *a, int e, const char *b) { return on_names("rename", SYS_renameat2, d, a, e, b, 0); }
int link(const char *a, const char *b) { return on_names("link", SYS_linkat, AT_FDCWD, a, AT_FDCWD, b, 0); }
int linkat(int d, const char *a, int e, const char *b, int f) { return on_names("link", SYS_linkat, d, a, e, b, f); }
int symlink(const char *a, const char *b) { return on_names("symlink", SYS_symlinkat, 0, a, AT_FDCWD, b, 0); }
int symlinkat(const char *a, int e, const char *b) { return on_names("symlink", SYS_symlinkat, 0, a, e, b, 0); }
int mkdir(const char *a, mode_t m) { return on_names("mkdir", SYS_mkdirat, AT_FDCWD, a, 0, NULL, m); }
int mkdirat(int d, const char *a, mode_t m) { return on_names("mkdir", SYS_mkdirat, d, a, 0, NULL, m); }
int rmdir(const char *a) { return on_names("rmdir", SYS_unlinkat, AT_FDCWD, a, 0, NULL, AT_REMOVEDIR); }
int unlink(const char *a) { return on_names("unlink", SYS_unlinkat, AT_FDCWD, a, 0, NULL, 0); }
int remove(const char *a) { return on_names("unlink", SYS_unlinkat, AT_FDCWD, a, 0, NULL, 0); }
int unlinkat(int d, const char *a, int f) {
    return on_names(f & AT_REMOVEDIR ? "rmdir" : "unlink", SYS_unlinkat, d, a, 0, NULL, f);
}
