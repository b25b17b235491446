/* Children that call whatever there is, with arguments that are often of use, until the time is over: `calls SEED SECONDS`. */
#include <linux/sched.h>

static uint64_t state;

static uint64_t chance(void) {
    /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull;
}

static struct { volatile long calls, children; } *shared;
static char *pages;
static const char *paths[] = {
    "/", ".", "..", "/workspace", "/tmp", "/dev/shm", "/proc", "/proc/self/mem", "/proc/1", "/proc/self/fd/0", "/proc/self/ns/user",
    "/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/usr", "/usr/bin/env", "/etc/passwd", "/workspace/a", "/tmp/a", "",
    "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/workspace/pipe", "/workspace/l", "/proc/self/exe", "/dev/ptmx",
};

static unsigned long argument(void) {
    static const unsigned long edges[] = {0, 1, 2, 3, 4, 7, 8, 16, 64, 255, 256, 4095, 4096, 4097, 65535, 65536, 1 << 20, 1ul << 31,
        (1ul << 31) - 1, 1ul << 32, 1ul << 47, 1ul << 62, 1ul << 63, -1ul, -2ul, -100ul, -4096ul};
    switch (chance() % 10) {
    case 0: return edges[chance() % (sizeof edges / sizeof *edges)];
    case 1: return chance() % 12;
    case 2: return (unsigned long)(pages + chance() % (1 << 18));
    case 3: return (unsigned long)(pages + chance() % (1 << 18)) & ~4095ul;
    case 4: return (unsigned long)paths[chance() % (sizeof paths / sizeof *paths)];
    case 5: return 1ul << chance() % 64;
    case 6: return chance() % 4096;
    case 7: return chance();
    case 8: return (chance() & chance()) & 0xffffffff;
    default: return (unsigned long)pages;
    }
}

/* What would end the caller rather than try the kernel; and what would only wait. */
static int is_left_out(long number) {
    switch (number) {
    case SYS_exit: case SYS_exit_group: case SYS_kill: case SYS_tkill: case SYS_tgkill: case SYS_rt_sigqueueinfo:
    case SYS_rt_tgsigqueueinfo: case SYS_pidfd_send_signal: case SYS_rt_sigreturn: case SYS_rt_sigsuspend:
#ifdef SYS_pause
    case SYS_pause: case SYS_fork: case SYS_vfork:
#endif
    case SYS_clone: case SYS_clone3: return 1;
    default: return 0;
    }
}

static void refill(void) {
    for (int at = 0; at < 64; at++) {
        uint64_t *word = (uint64_t *)(pages + (chance() % (1 << 18) & ~7ul));
        *word = chance() % 3 ? argument() : chance() % 64;
    }
}

static void child(uint64_t seed) {
    state = seed * 0x9e3779b97f4a7c15ull | 1;
    uid_t user = getuid();
    signal(SIGALRM, SIG_DFL);
    alarm(1);
    pipe((int[2]){0, 0});
    socketpair(AF_UNIX, SOCK_STREAM, 0, (int[2]){0, 0});
    open("/workspace/a", O_RDWR | O_CREAT, 0600);
    open("/usr/bin/env", O_RDONLY);
    open("/proc/self", O_RDONLY);
    for (int made = 0; made < 400; made++) {
        long number = chance() % 20 == 0 ? chance() % 1024 : chance() % 470;
        if (is_left_out(number)) continue;
        if (made % 16 == 0) refill();
        __atomic_add_fetch(&shared->calls, 1, __ATOMIC_RELAXED);
        syscall(number, argument(), argument(), argument(), argument(), argument(), argument());
    }
    /* In two parts: it is not to be found in memory that a call may have written out. */
    if (getuid() != user || geteuid() == 0) dprintf(1, "%sAPED: another user\n", "ESC");
    if (open("/etc/shadow", O_RDONLY) != -1) dprintf(1, "%sAPED: shadow\n", "ESC");
    if (open("/usr/faber-attack", O_CREAT | O_WRONLY, 0600) != -1) dprintf(1, "%sAPED: /usr\n", "ESC");
    _exit(0);
}

int main(int count, char **arguments) {
    uint64_t seed = strtoull(arguments[1], 0, 10);
    time_t end = time(0) + atoi(arguments[2]);
    shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pages = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mkfifo("/workspace/pipe", 0600);
    symlink("/workspace/a", "/workspace/l");
    struct { pid_t pid; time_t begun; } running[8] = {0};
    int out = fcntl(1, F_DUPFD_CLOEXEC, 50);
    while (time(0) < end) {
        for (int at = 0; at < 8; at++) {
            pid_t pid = running[at].pid;
            if (pid && waitpid(pid, 0, WNOHANG) != 0) pid = running[at].pid = 0;
            /* One that waits for ever, and has seen to it that no alarm comes. */
            if (pid && time(0) > running[at].begun + 1) kill(pid, SIGKILL);
            if (pid || (pid = fork()) == -1) continue;
            if (pid == 0) {
                setsid();
                close(out);
                child(seed + (uint64_t)shared->children * 1000003);
            }
            running[at].pid = pid;
            running[at].begun = time(0);
            shared->children++;
        }
        /* Again and again, for whoever ends this program too. */
        dprintf(out, "calls %ld\n", shared->calls);
        usleep(5000);
    }
    dprintf(out, "calls %ld\n", shared->calls);
    _exit(0);
}
