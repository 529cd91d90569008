"""Pickles that must not be loaded: names of code, opcodes, tensors that are not in their storage.

Each function yields (name, bytes of the file, what the error must name).
"""

import pickletools
import struct
from collections.abc import Callable, Iterator

from helpers.torch_files import Call, Named, Stored, archived, pickled, storage, tensor

from vdt_jax.weights.pickles import OPCODES

Case = tuple[str, bytes | Callable[[], bytes], str]

# Names that have been used to run code, to read or write files, or to reach such a function, from pickles.
_GADGETS = """
os.system posix.system nt.system os.popen os.execv os.spawnl os.remove os.unlink os.rename os.putenv
os.startfile subprocess.Popen subprocess.run subprocess.call subprocess.check_output subprocess.getoutput
pty.spawn builtins.eval builtins.exec builtins.compile builtins.open builtins.__import__ builtins.getattr
builtins.setattr builtins.globals builtins.breakpoint builtins.map builtins.type builtins.object builtins.print
__builtin__.eval runpy.run_path runpy._run_code importlib.import_module importlib.util.spec_from_file_location
pkgutil.resolve_name pip.main pip._internal.main timeit.timeit cProfile.run profile.run pdb.run bdb.Bdb.run
code.InteractiveInterpreter codeop.compile_command ctypes.CDLL ctypes.memmove webbrowser.open shutil.rmtree
shutil.copyfile socket.socket socket.create_connection urllib.request.urlopen http.client.HTTPSConnection
smtplib.SMTP ftplib.FTP ssl.SSLSocket asyncio.create_subprocess_shell multiprocessing.Process
concurrent.futures.ProcessPoolExecutor threading.Thread sys.exit sys.settrace sys.modules signal.signal
atexit.register gc.get_objects inspect.currentframe operator.attrgetter operator.methodcaller functools.partial
functools.reduce itertools.starmap types.FunctionType types.CodeType copyreg._reconstructor copyreg.__newobj__
copyreg.add_extension pickle.loads _pickle.loads pickle.Unpickler marshal.loads dill.loads cloudpickle.loads
joblib.load yaml.load shelve.open logging.config.fileConfig numpy.load numpy.testing._private.utils.runstring
numpy.f2py.crackfortran.getlincoef numpy._core.multiarray._reconstruct numpy.core.multiarray.scalar
numpy.ndarray numpy.memmap numpy.ctypeslib.load_library torch.load torch.hub.load torch.jit.load
torch.classes.load_library torch.ops.load_library torch.utils.cpp_extension.load torch.storage._load_from_bytes
torch._inductor.codecache.compile_file torch._dynamo.guards.GuardBuilder.get torch.serialization.load
torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression torch._utils._rebuild_tensor
torch._utils._rebuild_tensor_v3 torch._utils._rebuild_sparse_tensor torch._utils._rebuild_wrapper_subclass
torch._utils._rebuild_device_tensor_from_numpy torch.Tensor torch.nn.parameter.Parameter torch.nn.Module
torch.UntypedStorage torch.QInt8Storage collections.OrderedDict.update collections.defaultdict
collections.ChainMap argparse.Namespace.__init__ argparse.FileType pathlib.PosixPath tempfile.mktemp
zipfile.ZipFile sqlite3.connect idlelib.pyshell.ModifiedInterpreter.runcode lib2to3.pgen2.grammar.Grammar.loads
doctest.debug_script trace.Trace ensurepip._run_pip venv.create distutils.file_util.write_file
setuptools.sandbox.run_setup vdt_jax.cli.run vdt_jax.weights.torch_files.load_torch __main__.main transformers.AutoModel
tensorflow.io.write_file jax.numpy.load
"""


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def names_of_code() -> Iterator[Case]:
    """Each gadget in each of the ways in which a pickle names and calls."""
    start, key = b"\x80\x04}", text("w")
    for gadget in _GADGETS.split():
        module, _, name = gadget.rpartition(".")
        line = f"{module}\n{name}\n".encode()
        by_stack = text(module) + text(name) + b"\x93"
        argument = text("echo")
        ways = {
            "global": b"c" + line + argument + b"\x85R",
            "stack": by_stack + argument + b"\x85R",
            "newobj": b"c" + line + argument + b"\x85\x81",
            "uncalled": b"c" + line,
        }
        others = {
            "inst": b"(" + argument + b"i" + line,
            "obj": b"(c" + line + argument + b"o",
            "newobj_ex": by_stack + b")}\x92",
        }
        for way, body in ways.items():
            yield f"{gadget} by {way}", archived(start + key + body + b"s."), f"{module}.{name}"
        for way, body in others.items():
            yield f"{gadget} by {way}", archived(start + key + body + b"s."), "opcode" if way == "inst" else ""


def opcodes() -> Iterator[Case]:
    """Each opcode that is not in the allow-list, with room for its argument; and good ones in bad order."""
    for opcode in pickletools.opcodes:
        code = opcode.code.encode("latin-1")
        if opcode.name not in OPCODES | {"BINPERSID"}:
            yield f"opcode {opcode.name}", archived(b"\x80\x04}" + text("w") + code + b"\x01" * 16 + b"\ns."), "'w'"
    deep = b"\x80\x02" + b")" + b"\x85" * 5000 + b"."
    lists = b"\x80\x02]" + b"]q\x00" * 1 + b"a" * 1 + b"h\x00h\x00a0."
    bomb = b"\x80\x02]q\x00" + b"".join(
        b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(30)
    )
    ordered, filled = b"\x80\x02ccollections\nOrderedDict\n)R", text("w") + b"K\x01s."
    namespace = b"N}" + text("__class__") + b"cargparse\nNamespace\ns\x86b"
    rebuild = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
    streams = {
        "deep tuples": deep,
        "deep tuple as a key": b"\x80\x02})" + b"\x85" * 5000 + b"K\x01s.",
        "lists that hold themselves": b"\x80\x02]q\x00h\x00a.",
        "a dict that holds itself": b"\x80\x02}q\x00X\x01\x00\x00\x00wh\x00s.",
        "popped": lists,
        "ten to the thirty": bomb + b"\x85" * 30 + b".",
        "billion laughs": b"\x80\x02]q\x00" + b"(h\x00h\x00h\x00h\x00tq\x00" * 200 + b"0.",
        "tuples of tuples": b"\x80\x02)q\x00" + b"(h\x00h\x00h\x00h\x00tq\x00" * 30 + b".",
        # Without the check of keys, hashing it takes 2**60 steps.
        "a tuple of shared tuples as a key": b"\x80\x02})q\x00" + b"h\x00\x86q\x00" * 60 + b"K\x01s.",
        "colliding numbers as keys": b"\x80\x02}("
        + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(60_000))
        + b"u.",
        "control characters in a key": pickled({"\x1b[31m\n": tensor()}),
        "control characters in the key of a part": pickled({"model": {"w": tensor()}, "\x1b[31m\n": {}}),
        "control characters in a key, above an error": pickled({"\x1b[31m\n": tensor((9, 9))}),
        "control characters in a name of code": b"\x80\x04" + text("os\x1b[31m\n") + text("system") + b"\x93.",
        "control characters in a storage": pickled({"w": tensor(stored=storage("\x1b[31m\n"))}),
        "an OrderedDict without its methods": ordered + b"}" + text("items") + b"K\x01sb" + filled,
        "an OrderedDict of another class": ordered + namespace + filled,
        "a function with other defaults": rebuild + b"N}" + text("__defaults__") + b")s\x86b.",
        "a list as a key": b"\x80\x02}]K\x01s.",
        "a tuple as a key": b"\x80\x02}K\x01\x85K\x01s.",
        "a float as a key": b"\x80\x02}G?\xf0\x00\x00\x00\x00\x00\x00K\x01s.",
        "true as a key": b"\x80\x02}\x88K\x01s.",
        "one key twice": b"\x80\x02}" + (text("w") + b"K\x01s") * 2 + b".",
        "a colliding number as a key": b"\x80\x02}\x8a\x09" + bytes(8) + b"\x20K\x01s.",
        "a huge number": b"\x80\x02}" + text("w") + b"\x8b\xff\xff\xff\x7f" + b"\xff" * 50 + b"s.",
        "a number of 255 bytes as a size": pickled({"w": tensor((2**2000, 3))}),
        "a text longer than the file": b"\x80\x02X\xff\xff\xff\xff" + b"a" * 99 + b".",
        "a text that is no UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
        "a name without an end": b"\x80\x02c" + b"a" * 70000,
        "a memo that is not there": b"\x80\x02h\x07.",
        "a memo far away": b"\x80\x02]r\xff\xff\xff\xffj\xff\xff\xff\xfe.",
        "a memo far away that nothing gets": b"\x80\x02]r\xff\xff\xff\x07.",
        "too many opcodes": b"\x80\x02" + b"]0" * 300_000 + b".",
        "too many marks": b"\x80\x02" + b"(" * 500_000 + b".",
        "too many lists": b"\x80\x02(" + b"]" * 450_000 + b"t.",
        "no stop": b"\x80\x02}" + text("w") + b"K\x01s",
        "nothing to stop with": b"\x80\x02.",
        "more than one value": b"\x80\x02K\x01K\x02.",
        "a tuple from nothing": b"\x80\x02\x87.",
        "half a pair": b"\x80\x02}(" + text("w") + b"u.",
        "a pickle of 9 MiB": b"\x80\x02" + b"N0" * (9 << 19) + b".",
    }
    for name, data in streams.items():
        yield name, archived(data), ""
    yield "as many lists as bytes", lambda: archived(b"\x80\x02(" + b"]" * ((8 << 20) - 5) + b"t."), "opcodes"


def tensors() -> Iterator[Case]:
    """Tensors that are not in their storage, and storages that are not in the file; each under the key "layer.w"."""
    huge = 2**47
    shared: tuple = ()  # printing it would take 2**60 steps
    for _ in range(60):
        shared = (shared, shared)
    values = {
        "size of shared tuples": tensor(shared, (1, 1)),
        "stride of shared tuples": tensor((2, 3), shared),
        "offset of shared tuples": tensor(offset=shared),
        "id of shared tuples": Stored(shared),
        "kind of shared tuples": Stored(("storage", shared, "0", "cpu", 6)),
        "key of shared tuples": Stored(("storage", Named("torch", "FloatStorage"), shared, "cpu", 6)),
        "count of shared tuples": Stored(("storage", Named("torch", "FloatStorage"), "0", "cpu", shared)),
        "past the end": tensor((2, 4), (4, 1)),
        "offset past the end": tensor((2, 3), (3, 1), 1),
        "far offset": tensor((1,), (1,), huge),
        "negative offset": tensor((2, 3), (3, 1), -1),
        "negative stride": tensor((2, 3), (-3, 1)),
        "negative size": tensor((-2, 3), (3, 1)),
        "size that overflows": tensor((2**32, 2**32), (0, 0)),
        "stride that overflows": tensor((2, 2), (2**62, 2**62)),
        "stride zero, huge": tensor((huge,), (0,)),
        "stride zero, a bit more": tensor((7,), (0,)),
        "fewer strides": tensor((2, 3), (3,)),
        "sixty dimensions": tensor((1,) * 60, (1,) * 60),
        "size is a list": tensor([2, 3], (3, 1)),
        "size is a float": tensor((2.0, 3), (3, 1)),
        "size is a bool": tensor((True, 3), (3, 1)),
        "offset is a text": tensor(offset="0"),
        "no such storage": tensor(stored=storage("1")),
        "storage of a path": tensor(stored=storage("../data.pkl")),
        "storage larger than its entry": tensor(stored=storage(numel=7)),
        "storage smaller than its entry": tensor(stored=storage(numel=5)),
        "storage of a huge size": tensor(stored=storage(numel=2**60)),
        "storage of a negative size": tensor(stored=storage(numel=-6)),
        "storage of another type": tensor(stored=storage(kind="DoubleStorage")),
        "storage of a complex type": tensor(stored=storage(kind="ComplexFloatStorage")),
        "storage is a number": tensor(stored=7),
        "storage is a dict": tensor(stored={}),
        "id of a module": Stored(("module", "x", "y", "z", 1)),
        "id of four": Stored(("storage", Named("torch", "FloatStorage"), "0", "cpu")),
        "id is a text": Stored("storage"),
        "id of a callable": Stored(("storage", Named("collections", "OrderedDict"), "0", "cpu", 6)),
        "one storage, two types": [tensor(), tensor(stored=storage(kind="IntStorage"))],
        "too few arguments": Call("torch._utils", "_rebuild_tensor_v2", storage()),
        "a filled OrderedDict": Call("collections", "OrderedDict", [["a", 1]]),
        "a storage for a value": storage(),
        "a function for a value": Named("collections", "OrderedDict"),
    }
    for name, value in values.items():
        named = "" if name.endswith("for a value") else "layer.w"
        yield f"tensor: {name}", archived(pickled({"layer.w": value})), named
