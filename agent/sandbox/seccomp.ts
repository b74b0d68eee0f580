/**
 * The system calls that a boxed step may not make, as a classic BPF program for seccomp(2).
 *
 * A deny-list over what bubblewrap takes away already: it closes the doors to kernel code that no step needs, and
 * the socket families that a network namespace does not hold (AF_VSOCK reaches the hypervisor from inside one).
 * Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux.
 */

/** `[x86_64, arm64]`; null where the architecture has no such call. */
const DENIED: Readonly<Record<string, readonly [number | null, number | null]>> = {
  ptrace: [101, 117],
  syslog: [103, 116],
  uselib: [134, null],
  personality: [135, 92],
  pivot_root: [155, 41],
  chroot: [161, 51],
  acct: [163, 89],
  settimeofday: [164, 170],
  mount: [165, 40],
  umount2: [166, 39],
  swapon: [167, 224],
  swapoff: [168, 225],
  reboot: [169, 142],
  iopl: [172, null],
  ioperm: [173, null],
  init_module: [175, 105],
  delete_module: [176, 106],
  quotactl: [179, 60],
  lookup_dcookie: [212, 18],
  clock_settime: [227, 112],
  kexec_load: [246, 104],
  add_key: [248, 217],
  request_key: [249, 218],
  keyctl: [250, 219],
  unshare: [272, 97],
  perf_event_open: [298, 241],
  fanotify_init: [300, 262],
  name_to_handle_at: [303, 264],
  open_by_handle_at: [304, 265],
  setns: [308, 268],
  process_vm_readv: [310, 270],
  process_vm_writev: [311, 271],
  kcmp: [312, 272],
  finit_module: [313, 273],
  kexec_file_load: [320, 294],
  bpf: [321, 280],
  userfaultfd: [323, 282],
  io_uring_setup: [425, 425],
  io_uring_enter: [426, 426],
  io_uring_register: [427, 427],
  open_tree: [428, 428],
  move_mount: [429, 429],
  fsopen: [430, 430],
  fsconfig: [431, 431],
  fsmount: [432, 432],
  fspick: [433, 433],
  pidfd_getfd: [438, 438],
  mount_setattr: [442, 442],
  quotactl_fd: [443, 443],
};

interface Architecture {
  /** `AUDIT_ARCH_…` of linux/audit.h. */
  audit: number;
  column: 0 | 1;
  socket: number;
  socketpair: number;
  clone: number;
  clone3: number;
  ioctl: number;
}

const ARCHITECTURES: Readonly<Record<string, Architecture>> = {
  x64: { audit: 0xc000003e, column: 0, socket: 41, socketpair: 53, clone: 56, clone3: 435, ioctl: 16 },
  arm64: { audit: 0xc00000b7, column: 1, socket: 198, socketpair: 199, clone: 220, clone3: 435, ioctl: 29 },
};

const LOAD = 0x20; // BPF_LD | BPF_W | BPF_ABS
const EQUAL = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const AT_LEAST = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const ANY_BIT = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN = 0x06; // BPF_RET | BPF_K

const ALLOW = 0x7fff0000;
const errno = (number: number): number => 0x00050000 | number;
const EPERM = 1;
const ENOSYS = 38;
const EAFNOSUPPORT = 97;

const NR = 0;
const ARCH = 4;
/** Low half of an argument on a little-endian machine, as both architectures are run. */
const argument = (index: number): number => 16 + 8 * index;

const FAMILIES = [1, 2, 10]; // AF_UNIX, AF_INET, AF_INET6
/** CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME. */
const NEW_NAMESPACE =
  0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000;
/** Put characters into a terminal that somebody else reads. */
const TERMINAL_TRICKS = [0x5412, 0x541c]; // TIOCSTI, TIOCLINUX
const X32_BIT = 0x40000000;

interface Instruction {
  code: number;
  ifTrue: number;
  ifFalse: number;
  value: number;
}

/**
 * The filter as `struct sock_filter[]`, little-endian, for `bwrap --seccomp`. Undefined for an architecture whose
 * numbers are not known here: nothing is boxed there.
 */
export function seccompFilter(architecture: string): Buffer | undefined {
  const known = ARCHITECTURES[architecture];
  if (!known) return undefined;
  const program: Instruction[] = [
    load(ARCH),
    // Calls of another architecture have other numbers: a 32-bit program is refused as a whole.
    { code: EQUAL, ifTrue: 1, ifFalse: 0, value: known.audit },
    give(errno(EPERM)),
    load(NR),
    ...(known.column === 0
      ? [{ code: AT_LEAST, ifTrue: 0, ifFalse: 1, value: X32_BIT }, give(errno(EPERM))]
      : []),
  ];
  for (const numbers of Object.values(DENIED)) {
    const number = numbers[known.column];
    if (number !== null) program.push(...on(number, [give(errno(EPERM))]));
  }
  // Its flags lie in memory that a filter cannot read; libraries fall back to clone.
  program.push(...on(known.clone3, [give(errno(ENOSYS))]));
  program.push(
    ...on(known.clone, [
      load(argument(0)),
      { code: ANY_BIT, ifTrue: 0, ifFalse: 1, value: NEW_NAMESPACE },
      give(errno(EPERM)),
      give(ALLOW),
    ]),
  );
  for (const call of [known.socket, known.socketpair]) {
    program.push(
      ...on(call, [
        load(argument(0)),
        ...FAMILIES.flatMap((family) => when(family, ALLOW)),
        give(errno(EAFNOSUPPORT)),
      ]),
    );
  }
  program.push(
    ...on(known.ioctl, [
      load(argument(1)),
      ...TERMINAL_TRICKS.flatMap((request) => when(request, errno(EPERM))),
      give(ALLOW),
    ]),
  );
  program.push(give(ALLOW));
  return encode(program);
}

function load(offset: number): Instruction {
  return { code: LOAD, ifTrue: 0, ifFalse: 0, value: offset };
}

function give(value: number): Instruction {
  return { code: RETURN, ifTrue: 0, ifFalse: 0, value };
}

/** With the call's number loaded: the body for this call, else on to what follows. The body must return. */
function on(number: number, body: Instruction[]): Instruction[] {
  return [{ code: EQUAL, ifTrue: 0, ifFalse: body.length, value: number }, ...body];
}

function when(value: number, result: number): Instruction[] {
  return [{ code: EQUAL, ifTrue: 0, ifFalse: 1, value }, give(result)];
}

function encode(program: readonly Instruction[]): Buffer {
  const bytes = Buffer.alloc(program.length * 8);
  for (const [index, { code, ifTrue, ifFalse, value }] of program.entries()) {
    bytes.writeUInt16LE(code, index * 8);
    bytes.writeUInt8(ifTrue, index * 8 + 2);
    bytes.writeUInt8(ifFalse, index * 8 + 3);
    bytes.writeUInt32LE(value >>> 0, index * 8 + 4);
  }
  return bytes;
}
