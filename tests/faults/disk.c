// A disk that is full, read-only or slow for one process at a time: a library that is loaded before the C
// library (LD_PRELOAD) and stands between a node and its files. crates/testkit/src/disk.rs builds it.
//
// ATOLL_TEST_DISK names a folder. `modes/NODE` in it holds one letter: f (full), r (read-only), s (slow); any
// other, or no file, leaves the disk as it is. Only files below that folder are touched, never the standard
// streams. Full: what is written arrives by half, then the error comes, as on a real disk.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static char root[4096], mode_file[8192];

// Which node this is: the configuration's name without its ending.
__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("ATOLL_TEST_DISK");
    if (!folder || strlen(folder) >= sizeof root) return;
    static char line[65536];
    int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY);
    ssize_t length = fd < 0 ? 0 : syscall(SYS_read, fd, line, sizeof line - 1);
    if (fd >= 0) syscall(SYS_close, fd);
    for (char *word = line; word < line + length; word += strlen(word) + 1) {
        if (strcmp(word, "--config")) continue;
        char *path = word + strlen(word) + 1, *name = strrchr(path, '/'), *end = strrchr(path, '.');
        if (!name || !end || end < name) return;
        strcpy(root, folder);
        snprintf(mode_file, sizeof mode_file, "%s/modes/%.*s", folder, (int)(end - name - 1), name + 1);
        return;
    }
}

static char mode(void) {
    char letter = 0;
    if (!mode_file[0]) return 0;
    int error = errno, fd = syscall(SYS_openat, AT_FDCWD, mode_file, O_RDONLY);
    if (fd >= 0) {
        if (syscall(SYS_read, fd, &letter, 1) != 1) letter = 0;
        syscall(SYS_close, fd);
    }
    errno = error;
    return letter;
}

static int ours(const char *path) { return root[0] && path && !strncmp(path, root, strlen(root)); }

static int is_ours(int fd) {
    if (fd <= 2 || !root[0]) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int error = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = error;
    if (length <= 0) return 0;
    path[length] = 0;
    return ours(path);
}

static void dawdle(void) { usleep(200 * 1000); }

// Whether a change of names may go on; errno says why not.
static int may_change(const char *path, int takes_room) {
    if (!ours(path)) return 1;
    switch (mode()) {
    case 'r': errno = EROFS; return 0;
    case 'f': if (takes_room) { errno = ENOSPC; return 0; } return 1;
    case 's': usleep(100 * 1000); return 1;
    default: return 1;
    }
}

// How many of `count` bytes are taken; -1 with errno.
static ssize_t room(int fd, size_t count) {
    if (!is_ours(fd)) return count;
    switch (mode()) {
    case 'r': errno = EROFS; return -1;
    case 'f': if (count < 2) { errno = ENOSPC; return -1; } return count / 2;
    default: return count;
    }
}

static int open_any(int folder, const char *path, int flags, mode_t bits) {
    int changes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
    if (changes && !may_change(path, 0)) return -1;
    return syscall(SYS_openat, folder, path, flags, bits);
}
#define OPEN_BITS va_list list; va_start(list, flags); mode_t bits = flags & O_CREAT ? va_arg(list, mode_t) : 0; va_end(list)
int open(const char *path, int flags, ...) { OPEN_BITS; return open_any(AT_FDCWD, path, flags, bits); }
int open64(const char *path, int flags, ...) { OPEN_BITS; return open_any(AT_FDCWD, path, flags | O_LARGEFILE, bits); }
int openat(int folder, const char *path, int flags, ...) { OPEN_BITS; return open_any(folder, path, flags, bits); }
int openat64(int folder, const char *path, int flags, ...) { OPEN_BITS; return open_any(folder, path, flags | O_LARGEFILE, bits); }

ssize_t write(int fd, const void *bytes, size_t count) {
    ssize_t taken = room(fd, count);
    return taken < 0 ? -1 : syscall(SYS_write, fd, bytes, taken);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (count > 0 && room(fd, parts[0].iov_len) != (ssize_t)parts[0].iov_len) return write(fd, parts[0].iov_base, parts[0].iov_len);
    return syscall(SYS_writev, fd, parts, count);
}
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    ssize_t taken = room(fd, count);
    return taken < 0 ? -1 : syscall(SYS_pwrite64, fd, bytes, taken, at);
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite64(fd, bytes, count, at); }

static int sync_any(int fd, long call) {
    if (is_ours(fd)) {
        char now = mode();
        if (now == 's') dawdle();
        if (now == 'r') { errno = EROFS; return -1; }
    }
    return syscall(call, fd);
}
int fsync(int fd) { return sync_any(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_any(fd, SYS_fdatasync); }

static int resize(int fd, off64_t size) {
    if (is_ours(fd) && mode() == 'r') { errno = EROFS; return -1; }
    return syscall(SYS_ftruncate, fd, size);
}
int ftruncate(int fd, off_t size) { return resize(fd, size); }
int ftruncate64(int fd, off64_t size) { return resize(fd, size); }

int rename(const char *from, const char *to) { return may_change(to, 0) ? REAL(rename)(from, to) : -1; }
int unlink(const char *path) { return may_change(path, 0) ? REAL(unlink)(path) : -1; }
int rmdir(const char *path) { return may_change(path, 0) ? REAL(rmdir)(path) : -1; }
int mkdir(const char *path, mode_t bits) { return may_change(path, 1) ? REAL(mkdir)(path, bits) : -1; }
int chmod(const char *path, mode_t bits) { return may_change(path, 0) ? REAL(chmod)(path, bits) : -1; }
int bind(int fd, const struct sockaddr *address, socklen_t length) {
    if (address->sa_family == AF_UNIX && !may_change(((const struct sockaddr_un *)address)->sun_path, 1)) return -1;
    return REAL(bind)(fd, address, length);
}
