"""Python that waits for its program, and becomes it.

What is told and when: src/image/prepare.rs. The arguments are modules to import before. The program finds itself as one that was
started by its command: what it cannot be in this process is executed anew.
"""
import sys


def load(names):
    """Imports modules, which then end with the process: to take each of their objects apart takes longer than most programs run."""
    import atexit
    import gc
    import sys

    known, held = set(sys.modules), []
    # In a circle, and frozen: nobody ever looks whether it is of use.
    held.append(held)
    atexit.register(lambda: held.extend(sys.modules.pop(name) for name in loaded if name in sys.modules))
    for name in names:
        __import__(name)
    installed = [name for name in sys.modules if "-packages/" in (getattr(sys.modules[name], "__file__", None) or "")]
    loaded = [name for name in installed if name not in known]
    gc.collect()


def become():
    import gc
    import linecache
    import os

    if sys.argv[1:]:
        load(sys.argv[1:])
    else:
        del sys.modules["gc"]
    # A program that does not import it, or is not told of it, does not find it.
    lines = sys.modules.pop("linecache")
    # What is here now is nothing to look through again.
    gc.freeze()
    os.write(1, b"\n")

    def take(most):
        piece = os.read(0, most)
        if not piece:
            os._exit(0)
        return piece

    length = b""
    while (digit := take(1)) != b"\n":
        length += digit
    said = b""
    while len(said) < int(length):
        said += take(int(length) - len(said))
    count, *words = os.fsdecode(said).split("\0")[:-1]
    argv, env = words[: int(count)], words[int(count) :]
    if env:
        # In the order in which a process gets them.
        whole = {**os.environ, **dict(variable.split("=", 1) for variable in env)}
        os.environ.clear()
        os.environ.update(sorted(whole.items()))

    main = sys.modules["__main__"].__dict__
    known = {name: main[name] for name in ("__name__", "__package__", "__spec__", "__builtins__")}
    known["__doc__"] = None
    if "__annotations__" in main:
        known["__annotations__"] = {}
    if argv[1] == "-c":
        _, _, source, *rest = argv
        name, first, place = "<string>", "", ["-c", *rest]
        known["__loader__"] = sys.meta_path[0]
        # Later versions take blanks off the front; what is no UTF-8 is refused before it is compiled.
        is_plain = not source[:1].isspace() and source.encode("utf-8", "replace") == os.fsencode(source)
    else:
        place = argv[1:]
        name = os.path.join(os.getcwd(), place[0])
        first = os.path.dirname(os.path.realpath(name))
        try:
            with open(name, "rb") as file:
                source = file.read()
            # An archive or bytecode has no text.
            is_plain = b"\0" not in source
        except OSError:
            is_plain = False
        known["__loader__"] = type(main["__loader__"])("__main__", name)
        known["__file__"], known["__cached__"] = name, None
    # Both names are in one directory.
    sys.executable = sys._base_executable = os.path.join(os.path.dirname(sys.executable), argv[0])
    if not is_plain:
        os.execv(sys.executable, argv)

    show, this = sys.excepthook, become.__code__.co_filename

    def excepthook(kind, value, traceback):
        while traceback is not None and traceback.tb_frame.f_code.co_filename == this:
            traceback = traceback.tb_next
        value.__traceback__ = traceback
        show(kind, value, traceback)

    sys.excepthook = sys.__excepthook__ = excepthook
    sys.orig_argv, sys.argv = argv, place
    if not sys.flags.safe_path:
        sys.path[0] = first
    code = compile(source, name, "exec", dont_inherit=True)
    if name == "<string>" and sys.version_info >= (3, 13):
        # As Python does, so that tracebacks show its lines.
        sys.modules["linecache"] = lines
        lines._register_code(code, source, name)
    main.clear()
    main.update(known)
    return code, main


exec(*become())
