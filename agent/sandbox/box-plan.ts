/**
 * From what a step may see to the exact command that boxes it. Pure: what it needs to know of the host is handed in.
 *
 * Paths are the same inside and outside, so that a step is told the same whether it is boxed or not.
 */
import { dirname } from "node:path";
import type { StepGroup } from "./group-plan.ts";
import type { LaidEntry } from "./image-root.ts";
import type { Launcher } from "./launcher.ts";
import type { NetworkPlan } from "./network-plan.ts";

/** What the host can do, found out once when the agent starts. */
export interface BoxHost {
  /** Path of bubblewrap. */
  bwrap: string;
  version: string;
  /**
   * `drop`: the agent is root; bubblewrap sets up as root, and setpriv drops to the step's user, with no capability
   * left. `user-namespace`: the step has the agent's own user, in a user namespace.
   */
  mode: "drop" | "user-namespace";
  setpriv: string;
  /** Path; empty where it is not installed, and steps have no way out. */
  nsenter: string;
  /** base64, for `--seccomp`. */
  seccomp: string;
  /** Of /usr, /bin, /sbin, /lib, /lib64 and what else there is: real directories, and links by their target. */
  system: readonly { path: string; link?: string }[];
  /** Files and directories of /etc that programs need to start, as far as they are there. */
  etc: readonly string[];
  /** Of boxes whose root is an image. Missing: this host cannot. */
  launcher?: Launcher;
}

export interface BoxRequest {
  argv: readonly string[];
  env: Readonly<Record<string, string>>;
  cwd: string;
  /** The step's own directories. */
  writable: readonly string[];
  readable: readonly string[];
  /** Never shown, wherever they lie: the agent's state, datasets that the step does not name. Real paths. */
  hidden: readonly { path: string; kind: "directory" | "file" }[];
  user: { uid: number; gid: number };
  limits: BoxLimits;
  /** Files in memory below `SECRETS_DIRECTORY`. */
  secrets?: Readonly<Record<string, Buffer>>;
  /** Made by whoever starts the box; the outermost shell joins it. */
  group?: StepGroup | undefined;
  /** Missing: the box has no network. `hosts`: the file that is its `/etc/hosts`. */
  network?: { plan: NetworkPlan; hosts: string } | undefined;
  /** Missing: the box shows the host's programs. */
  image?: BoxImage | undefined;
}

/** What takes the place of the host's programs and of its /etc. */
export interface BoxImage {
  launcher: Launcher;
  entries: readonly LaidEntry[];
  /** Directory of files that are laid over the image's own, by their names in /etc. */
  etc: string;
}

/** In the box alone. */
export const SECRETS_DIRECTORY = "/run/secrets";
/** Never the image's own: setpriv asks them while it may still become any user. */
export const IMAGE_ETC = ["passwd", "group", "nsswitch.conf", "hosts"] as const;
/** Of memory that a file takes at least. */
const PAGE_BYTES = 4096;

export interface BoxLimits {
  openFiles: number;
  /** By RLIMIT_NPROC, where no control group counts them. */
  processes?: number | undefined;
  fileSizeBytes: number;
  /** Of /tmp and /dev/shm, each: they lie in memory. */
  tmpBytes: number;
}

/**
 * What the supervisor spawns: with no environment, `stdin` on descriptor 0, the filter on 3, and 4 to be told on. With a
 * network, bubblewrap describes the box on 5.
 */
export interface Box {
  argv: string[];
  stdin: string;
  seccomp: string;
  group?: StepGroup | undefined;
  network?: NetworkPlan | undefined;
}

const FILE_BLOCK_BYTES = 512;
/** Said on descriptor 4 just before the step's program takes over. Anything else, or nothing: it never ran. */
export const BOX_READY = "ready";

export function planBox(host: BoxHost, request: BoxRequest): Box {
  const { limits, user } = request;
  const { bwrap, mode } = host;
  const { setpriv, sh } = request.image?.launcher ?? { setpriv: [host.setpriv], sh: ["/bin/sh"] };
  // Limits are inherited over exec and cannot be raised again without a capability.
  const outer = [
    "set -e",
    // Before anything else, so that no process of the step is ever outside.
    ...(request.group?.directories ?? []).map(({ path }) => `echo $$ >${quoted(`${path}/cgroup.procs`)}`),
    "ulimit -c 0",
    `ulimit -n ${limits.openFiles}`,
    `ulimit -f ${Math.ceil(limits.fileSizeBytes / FILE_BLOCK_BYTES)}`,
    'exec "$@"',
  ].join("\n");
  const dropped =
    mode === "drop"
      ? [
          ...[...setpriv, "--reuid", String(user.uid), "--regid", String(user.gid), "--clear-groups"],
          ...["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"],
        ]
      : [];
  return {
    argv: [
      "/bin/sh",
      "-c",
      outer,
      "sh",
      bwrap,
      ...bwrapArguments(host, request),
      "--",
      ...dropped,
      ...sh,
      "-s",
      "--",
      ...request.argv,
    ],
    stdin: startScript(request),
    seccomp: host.seccomp,
    group: request.group,
    network: request.network?.plan,
  };
}

function bwrapArguments(host: BoxHost, request: BoxRequest): string[] {
  const capabilities = ["CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"];
  const privileges =
    host.mode === "drop"
      ? ["--cap-drop", "ALL", ...capabilities.flatMap((name) => ["--cap-add", name])]
      : ["--unshare-user", "--cap-drop", "ALL"];
  const size = String(request.limits.tmpBytes);
  return [
    ...privileges,
    ...["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--unshare-cgroup-try"],
    ...["--die-with-parent", "--hostname", "insitu", "--seccomp", "3"],
    ...(request.image ? imageArguments(request.image) : hostArguments(host)),
    ...networkArguments(request.network),
    ...["--proc", "/proc", "--dev", "/dev"],
    ...["--perms", "1777", "--size", size, "--tmpfs", "/dev/shm"],
    ...["--perms", "1777", "--size", size, "--tmpfs", "/tmp"],
    ...mounts(request),
    ...secretsMount(request.secrets ?? {}),
    ...["--remount-ro", "/", "--chdir", "/"],
  ];
}

function hostArguments(host: BoxHost): string[] {
  return [
    ...host.system.flatMap(({ path, link }) =>
      link === undefined ? ["--ro-bind", path, path] : ["--symlink", link, path],
    ),
    ...host.etc.flatMap((path) => [...parentOf(path), "--ro-bind", path, path]),
  ];
}

function imageArguments({ launcher, entries, etc }: BoxImage): string[] {
  const bound = [
    ...IMAGE_ETC.map((name) => ({ source: `${etc}/${name}`, path: `/etc/${name}` })),
    ...launcher.files,
  ];
  return [
    ...entries.flatMap((entry) => {
      if (entry.kind === "directory") return ["--perms", "0755", "--dir", entry.path];
      return entry.kind === "link"
        ? ["--symlink", entry.target, entry.path]
        : ["--ro-bind", entry.source, entry.path];
    }),
    ...bound.flatMap(({ source, path }) => [...parentOf(path), "--ro-bind", source, path]),
  ];
}

function networkArguments(network: BoxRequest["network"]): string[] {
  if (!network) return [];
  const path = "/etc/hosts";
  return ["--info-fd", "5", ...parentOf(path), "--ro-bind", network.hosts, path];
}

/** The innermost shell fills it. Nobody but the step is there to look. */
function secretsMount(secrets: Readonly<Record<string, Buffer>>): string[] {
  const files = Object.values(secrets);
  if (files.length === 0) return [];
  const pages = files.reduce((sum, { length }) => sum + Math.ceil(length / PAGE_BYTES) + 1, 1);
  const size = String(pages * PAGE_BYTES);
  return [...parentOf(SECRETS_DIRECTORY), "--perms", "1777", "--size", size, "--tmpfs", SECRETS_DIRECTORY];
}

/** Outer paths first, so that what lies deeper is laid over them. */
function mounts({ writable, readable, hidden }: BoxRequest): string[] {
  const all = [
    // At one path, hiding comes last: to show less is the safe mistake.
    ...readable.map((path) => ({ path, args: ["--ro-bind", path, path] })),
    ...writable.map((path) => ({ path, args: ["--bind", path, path] })),
    ...hidden.map(({ path, kind }) => ({
      path,
      args:
        kind === "directory"
          ? ["--perms", "0555", "--size", "4096", "--tmpfs", path]
          : ["--ro-bind", "/dev/null", path],
    })),
  ];
  return all
    .sort((a, b) => depth(a.path) - depth(b.path))
    .flatMap(({ path, args }) => [...parentOf(path), ...args]);
}

/** bubblewrap makes missing parents as private as what it binds: their owner alone, who is not the step, could pass. */
function parentOf(path: string): string[] {
  return ["--perms", "0755", "--dir", dirname(path)];
}

function depth(path: string): number {
  return path.split("/").filter((segment) => segment !== "").length;
}

/**
 * Where the hidden would be seen: `shown` is at `path` in the box and at `real` on the host, which differ when it is
 * reached by a link.
 */
export function exposed<T extends { path: string }>(
  shown: readonly { path: string; real: string }[],
  hidden: readonly T[],
): T[] {
  return hidden.flatMap((item) =>
    shown
      .filter(({ real }) => isWithin(real, item.path))
      .map(({ path, real }) => ({ ...item, path: path + item.path.slice(real.length) })),
  );
}

export function isWithin(parent: string, path: string): boolean {
  for (let at = path; ; at = dirname(at)) {
    if (at === parent) return true;
    if (at === dirname(at)) return false;
  }
}

/**
 * What the innermost shell reads. The environment comes this way alone: it is on no command line, not in the
 * environment of bubblewrap or of process 1, and a loader's variable cannot act on a program that still has privileges.
 */
function startScript({
  env,
  cwd,
  limits,
  secrets = {},
}: Pick<BoxRequest, "env" | "cwd" | "limits" | "secrets">): string {
  return [
    // First, while no program but the shell has run. Its own printf: the value is on no command line.
    ...Object.entries(secrets).map(
      ([name, value]) => `(umask 377; printf '${octal(value)}' >${SECRETS_DIRECTORY}/${name}) || exit 126`,
    ),
    // In here, where the kernel counts those of this user namespace, or of the step's user. dash says -p, others -u.
    ...(limits.processes === undefined
      ? []
      : [`ulimit -u ${limits.processes} 2>&- || ulimit -p ${limits.processes} || exit 126`]),
    ...Object.entries(env).map(([name, value]) => `export ${name}=${quoted(value)}`),
    // Here and not by bubblewrap, which may be root without the right to enter another user's directory.
    `cd -- ${quoted(cwd)} || exit 126`,
    "fail() { echo $1 >&4; exit 127; }",
    'case $1 in */*) [ -e "$1" ] || fail ENOENT; [ -x "$1" ] || fail EACCES;; *) command -v -- "$1" >/dev/null || fail ENOENT;; esac',
    `echo ${BOX_READY} >&4`,
    'exec "$@" </dev/null 3>&- 4>&-',
    "",
  ].join("\n");
}

/** Any byte, also those that a shell's text cannot hold. */
function octal(bytes: Buffer): string {
  return [...bytes].map((byte) => `\\${byte.toString(8).padStart(3, "0")}`).join("");
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Names that a shell can export. Others cannot be handed to a boxed step. */
export const EXPORTABLE = /^[A-Za-z_][A-Za-z0-9_]*$/;
