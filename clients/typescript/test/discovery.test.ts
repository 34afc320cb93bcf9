/** Where a daemon's command is looked for, and what is said when there is none. Nothing is downloaded. */

import assert from "node:assert/strict";
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { beforeEach, test } from "node:test";

import { Client, DaemonNotFoundError } from "../src/index.js";
import { findCommand, installFolder } from "../src/discovery.js";
import type { Search } from "../src/discovery.js";
import { installDaemon } from "../src/install.js";
import { splitWords } from "../src/programs.js";
import type { Environment } from "../src/programs.js";
import { useFolder } from "./support/scene.js";

const folder = useFolder();
let home = "";
let bare: Environment = {};

beforeEach(() => {
  home = join(folder(), "home");
  mkdirSync(home);
  bare = { HOME: home, PATH: join(home, "bin") };
});

function find(search: Search = {}): Promise<string[]> {
  return findCommand({ environment: bare, usualFolders: [join(home, "usual")], ...search });
}

function program(path: string, text: string): string {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
  chmodSync(path, 0o755);
  return path;
}

/** A stand-in that answers the probe as an interpreter would. */
function interpreter(path: string, missing = ""): string {
  return program(path, `#!/bin/sh\necho ${missing}\n`);
}

const withPython = (python: string): string[] => [python, "-P", "-m", "vlmd"];

test("named commands come first and alone", async () => {
  const python = interpreter(join(folder(), "py"));
  assert.deepEqual(await find({ python }), withPython(python));
  assert.deepEqual(await find({ command: `${python} -m 'my vlmd'` }), [python, "-m", "my vlmd"]);
  assert.deepEqual(await find({ command: [python, "x"] }), [python, "x"]);
  assert.deepEqual(await find({ environment: { ...bare, VLMD_COMMAND: `${python} run`, VLMD_PYTHON: "/no" } }), [python, "run"]);
  for (const name of ["VLMD_PYTHON", "ESCRIBANO_PYTHON_PATH"]) {
    assert.deepEqual(await find({ environment: { ...bare, [name]: python } }), withPython(python));
  }
});

test("a named command that will not do is not replaced by another", async () => {
  program(join(home, "bin", "vlmd"), "#!/bin/sh\n");
  const cases: [Environment, RegExp][] = [
    [{ VLMD_PYTHON: "/nowhere/python" }, /VLMD_PYTHON names \/nowhere\/python: no such file/],
    [{ ESCRIBANO_PYTHON_PATH: "/etc" }, /names \/etc: not a file/],
    [{ VLMD_PYTHON: "/etc/passwd" }, /not executable/],
    [{ VLMD_COMMAND: "/nowhere/vlmd serve" }, /VLMD_COMMAND names \/nowhere\/vlmd: no such file/],
    [{ VLMD_COMMAND: "nothing-of-that-name" }, /not on PATH/],
    [{ VLMD_COMMAND: "  " }, /names no command/],
  ];
  for (const [variables, message] of cases) {
    await assert.rejects(find({ environment: { ...bare, ...variables } }), { name: "DaemonNotFoundError", message });
  }
});

test("the app's own files, then an installation, then environments, PATH and the usual folders", async () => {
  const usual = program(join(home, "usual", "vlmd"), "#!/bin/sh\n");
  assert.deepEqual(await find(), [usual]);
  const onPath = program(join(home, "bin", "vlmd"), "#!/bin/sh\n");
  assert.deepEqual(await find(), [onPath]);
  const inHome = interpreter(join(home, ".venv", "bin", "python"));
  assert.deepEqual(await find(), withPython(inHome));
  const active = interpreter(join(folder(), "active", "bin", "python"));
  const environment = { ...bare, VIRTUAL_ENV: join(folder(), "active") };
  assert.deepEqual(await find({ environment }), withPython(active));
  const installed = interpreter(join(installFolder(bare), "bin", "python"));
  assert.deepEqual(await find({ environment }), withPython(installed));
  const resourcesPath = join(folder(), "App.app", "Contents", "Resources");
  const bundled = program(join(resourcesPath, "vlmd", "vlmd"), "\x7fELF");
  assert.deepEqual(await find({ environment, resourcesPath }), [bundled]);
  const python = interpreter(join(resourcesPath, "vlmd", "bin", "python"));
  assert.deepEqual(await find({ environment, resourcesPath }), withPython(python));
});

test("a script is asked through its interpreter", async () => {
  const python = interpreter(join(folder(), "a folder", "python3"), "mlx_vlm");
  for (const form of [`#!${python}\n`, `#!/bin/sh\n'''exec' "${python}" "$0" "$@"\n' '''\n`]) {
    interpreter(python, "mlx_vlm");
    const script = program(join(home, "bin", "vlmd"), form);
    await assert.rejects(find(), /without an engine/);
    assert.deepEqual(await find({ needsEngine: false }), [script]);
    interpreter(python);
    assert.deepEqual(await find(), [script]);
  }
});

test("every place tried is named, with what is wrong there", async () => {
  const clientOnly = interpreter(join(folder(), "env", "bin", "python"), "vlmd_bridge,mlx_vlm");
  const noEngine = interpreter(join(home, ".venv", "bin", "python"), "mlx_vlm");
  const hangs = program(join(folder(), "python-hangs"), "#!/bin/sh\nexec /bin/sleep 60\n");
  program(join(home, "bin", "vlmd"), `#!${hangs}\n`);
  const environment = { ...bare, VIRTUAL_ENV: join(folder(), "env") };
  const error = await find({ environment, probeTimeoutMs: 200 }).catch((thrown: unknown) => thrown);
  assert.ok(error instanceof DaemonNotFoundError && error.code === "daemon_not_found");
  for (const part of [
    `${clientOnly}: vlmd is not installed there`,
    `${noEngine}: vlmd is installed there without an engine`,
    "did not answer within 0.2 s",
    `${join(home, "usual", "vlmd")}: no such file`,
    "pip install 'vlmd[mlx]'",
  ]) {
    assert.ok(error.message.includes(part), `${part} in ${error.message}`);
  }
});

test("words are split like a shell's", () => {
  assert.deepEqual(splitWords(`a "b c" 'd "e' f\\ g "h\\"i" '' `), ["a", "b c", 'd "e', "f g", 'h"i', ""]);
  assert.throws(() => splitWords("a 'b"), SyntaxError);
});

test("without `install` a missing daemon is an error, and nothing runs", async () => {
  const saved = { HOME: process.env["HOME"], PATH: process.env["PATH"] };
  const ran = join(folder(), "ran");
  program(join(home, "bin", "python3"), `#!/bin/sh\n: > ${ran}\n`);
  Object.assign(process.env, bare);
  try {
    await using client = new Client({ model: "demo" });
    const error = await client.ping().catch((thrown: unknown) => thrown);
    // Only where this machine has a daemon in a usual folder is there none.
    assert.ok(error instanceof DaemonNotFoundError, String(error));
    await assert.rejects(import("node:fs/promises").then(({ access }) => access(ran)));
  } finally {
    Object.assign(process.env, saved);
  }
});

test("`install` makes an environment with a Python that is new enough, or says why not", async () => {
  program(join(home, "bin", "python3.12"), "#!/bin/sh\necho 3 9\n");
  await assert.rejects(installDaemon(bare, () => undefined), /python3.12: Python 3.9/);
  // Stands in for Python, its venv and its pip: it makes what they would, and prints what it was asked.
  const fake = `#!/bin/sh\ncase "$1 $2" in "-c "*) echo 3 12;; "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python";; *) echo "$@";; esac\n`;
  program(join(home, "bin", "python3"), fake.replaceAll("mkdir", "/bin/mkdir").replaceAll("cp ", "/bin/cp "));
  const lines: string[] = [];
  const command = await installDaemon(bare, (line) => lines.push(line));
  assert.deepEqual(command, withPython(join(installFolder(bare), "bin", "python")));
  assert.deepEqual(lines, ["-m pip install --disable-pip-version-check --upgrade vlmd[mlx]"]);
});
