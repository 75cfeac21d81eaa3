"""``onestep demo``: a page on which a generator draws, in the browser or by an app, served on this machine."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from onestep.pages.server import SETTINGS, demo_server

_EPILOG = """\
The page runs the network by ONNX Runtime Web, whose files come from its npm package. Fetch it once:
  npm pack onnxruntime-web
The file stays where it is and is found in the current folder, or given by --runtime.

  onestep demo fashion                                   the bundled student of Fashion-MNIST, on a free port
  onestep demo outputs/RUN -o page --no-serve            a folder for any web server
  onestep demo page                                      serve it again
  onestep demo outputs/RUN 'prompts=["a cat","a dog"]'   the prompts to choose from
  onestep demo outputs/RUN --gradio                      an app of gradio, which draws in this process
"""


def main(arguments: Sequence[str]) -> None:
    """Make a demo, and serve it until it is interrupted.

    Raises:
        ValueError: as :func:`onestep.pages.demo.write_demo`, :func:`onestep.pages.server.demo_server`,
            :func:`onestep.pages.app.build_app` and :class:`onestep.build.deployment.Deployment`.
    """
    options = _parse(arguments)
    if options.gradio:
        _serve_app(options)
    elif (Path(options.run) / SETTINGS).is_file():
        _serve(Path(options.run), options.port)
    elif options.output is not None:
        _write(options, options.output)
        print(f"written: {options.output}")
        if options.serve:
            _serve(options.output, options.port)
    else:
        with tempfile.TemporaryDirectory(prefix="onestep_demo_") as folder:
            _write(options, Path(folder) / "demo")
            _serve(Path(folder) / "demo", options.port)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="onestep demo",
        description="Make a page on which a generator draws in the browser, and serve it on this machine alone.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", help="a run's folder, a generator's folder or file, the name of a bundled generator, or "
                        "the folder of a demo")  # fmt: skip
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of onestep sample, such as "
                        "classes=[3,7], prompts=[...], or teacher=... with sampler=...")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, help="the folder to write; default: one that lives as long as "
                        "the command")  # fmt: skip
    parser.add_argument("--port", type=int, default=0, help="of the server, on 127.0.0.1; default: a free one")
    parser.add_argument("--no-serve", dest="serve", action="store_false", help="with -o: write the folder alone")
    parser.add_argument("--seeds", type=int, default=64, help="seeds to choose from (default 64)")
    parser.add_argument("--teacher-seeds", type=int, default=16, help="seeds of which the teacher draws a picture for "
                        "each class or prompt (default 16)")  # fmt: skip
    parser.add_argument("--runtime", type=Path, help="the npm package onnxruntime-web: its .tgz, or its folder; "
                        "default: onnxruntime-web-*.tgz in the current folder")  # fmt: skip
    parser.add_argument("--gradio", action="store_true", help="an app of gradio with any seed, class or prompt, "
                        "in place of the page; needs pip install 'onestep[gradio]'")  # fmt: skip
    options = parser.parse_intermixed_args(arguments)  # settings on either side of the options
    if options.gradio and (options.output or options.runtime or not options.serve):
        parser.error("--gradio serves an app and writes no page: remove -o, --no-serve and --runtime")
    if options.seeds < 2 or options.teacher_seeds < 0:
        parser.error(f"--seeds {options.seeds} --teacher-seeds {options.teacher_seeds}: expected at least 2 and 0")
    if not options.serve and options.output is None:
        parser.error("--no-serve writes a folder: give it with -o FOLDER")
    return options


def _write(options: argparse.Namespace, output: Path) -> None:
    from onestep.build.deployment import Deployment
    from onestep.export.export import check_output
    from onestep.pages.demo import write_demo

    runtime = options.runtime or _found_runtime()
    check_output(output)
    deployment = Deployment(options.run, options.settings)
    teacher = deployment.teacher() if options.teacher_seeds else None
    write_demo(deployment.graph, _title(options), options.seeds, teacher, options.teacher_seeds, runtime, output)


def _serve_app(options: argparse.Namespace) -> None:
    from onestep.build.deployment import Deployment
    from onestep.pages.app import build_app, serve_app

    deployment = Deployment(options.run, options.settings)
    teacher = deployment.teacher() if options.teacher_seeds else None
    app = build_app(_title(options), deployment.graph, deployment.space, teacher)
    print(f"open {serve_app(app, options.port)} (Ctrl-C ends it)", flush=True)
    app.block_thread()


def _title(options: argparse.Namespace) -> str:
    return f"onestep: {Path(options.run).resolve().name}"


def _found_runtime() -> Path:
    found = sorted(Path().glob("onnxruntime-web-*.tgz"))
    if not found:
        raise ValueError(
            "the page needs the npm package onnxruntime-web, and there is no onnxruntime-web-*.tgz in this folder: "
            "npm pack onnxruntime-web, or name it by --runtime"
        )
    return found[-1]


def _serve(folder: Path, port: int) -> None:
    with demo_server(folder, port) as server:
        print(f"open http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        server.serve_forever()
