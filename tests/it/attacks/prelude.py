import ctypes, errno, glob, mmap, os, resource, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NONE, AT_FDCWD = ctypes.c_void_p(None), -100
NEWUSER, NEWNS, NEWNET, NEWPID, NEWIPC, NEWUTS, NEWCGROUP = 0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000

def say(*words):
    print(*words, file=sys.stderr if PAIRED else sys.stdout, flush=True)

def tell(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline().split()

def call(what, *args):
    """A system call; what came of it."""
    ctypes.set_errno(0)
    result = libc.syscall(N[what], *[ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args])
    say(what, "DONE" if result != -1 else errno.errorcode[ctypes.get_errno()])
    return result

def attempt(what, action):
    """Something that raises an OSError where it cannot be done."""
    try:
        result = action()
    except OSError as error:
        say(what, errno.errorcode[error.errno])
    except ValueError:
        # The resource module's word for it.
        say(what, "EPERM")
    else:
        say(what, "DONE")
        return result

def read(path):
    with open(path, "rb") as file:
        return file.read()

def write(path, content=b"faber-attack", flags=os.O_WRONLY):
    file = os.open(path, flags)
    try:
        os.write(file, content)
    finally:
        os.close(file)
    say(path, "ESCAPED")

def in_child(action):
    """Runs it in a process of its own; its exit status."""
    pid = os.fork()
    if not pid:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

# Of what follows here.
