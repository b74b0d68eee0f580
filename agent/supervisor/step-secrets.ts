/**
 * The secrets of one running step, in the process that writes down what it says: they are masked before anything
 * reaches the disk, and their files lie in memory for as long as the step runs.
 */
import {
  closeSync,
  constants,
  fstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { Masker, masked, Needles } from "../secrets/masker.ts";
import type { StepSpec } from "./protocol.ts";
import type { Frame } from "./spool.ts";

type Spec = NonNullable<StepSpec["secrets"]>;

export class StepSecrets {
  readonly #spec: Spec;
  readonly #needles: Needles;
  readonly #maskers: Record<Frame["stream"], Masker>;
  readonly maskedOutputs: string[] = [];

  /** @throws what the file system throws; nothing is left then */
  constructor(spec: Spec) {
    this.#spec = spec;
    this.#needles = new Needles(spec.values.map((value) => Buffer.from(value, "base64")));
    // Two streams: what lies between is never one secret.
    this.#maskers = { stdout: new Masker(this.#needles), stderr: new Masker(this.#needles) };
    this.#place();
  }

  /** How often a secret was masked. */
  get maskedInLog(): number {
    return this.#maskers.stdout.count + this.#maskers.stderr.count;
  }

  /** What may be written of it now; the rest comes with what follows, or with the end. */
  mask(stream: Frame["stream"], data: Buffer): Buffer {
    return this.#maskers[stream].push(data);
  }

  end(stream: Frame["stream"]): Buffer {
    return this.#maskers[stream].end();
  }

  text(text: string): string {
    return masked(this.#needles, Buffer.from(text)).bytes.toString("utf8");
  }

  /**
   * In the files that the step has left as outputs, which leave the site. None of its processes is there any more.
   *
   * @throws when one cannot be replaced: it must not be passed on then
   */
  maskOutputs(): void {
    const { directory, maxBytes } = this.#spec.outputs;
    for (const [name, max] of Object.entries(maxBytes)) {
      const before = readOutput(join(directory, name), max);
      if (before === undefined) continue; // nor does the agent take it
      const { bytes, count } = masked(this.#needles, before);
      if (count === 0) continue;
      const fresh = join(directory, `.${name}.masked`);
      rmSync(fresh, { recursive: true, force: true });
      writeFileSync(fresh, bytes, { flag: "wx", mode: 0o600 });
      renameSync(fresh, join(directory, name));
      this.maskedOutputs.push(name);
    }
  }

  withdraw(): void {
    const { files } = this.#spec;
    if (files) rmSync(files.directory, { recursive: true, force: true });
  }

  #place(): void {
    const { files } = this.#spec;
    if (!files) return;
    // Fails when it is there: somebody else may have made it, to read what we put in it.
    mkdirSync(files.directory, { mode: 0o700 });
    try {
      for (const [name, value] of Object.entries(files.contents))
        writeFileSync(join(files.directory, name), Buffer.from(value, "base64"), { flag: "wx", mode: 0o600 });
    } catch (thrown) {
      this.withdraw();
      throw thrown;
    }
  }
}

/** Undefined for what is no output: not there, a link, no file, too large. */
function readOutput(path: string, maxBytes: number): Buffer | undefined {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (thrown) {
    if (["ENOENT", "ELOOP", "ENXIO"].includes((thrown as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw thrown;
  }
  try {
    const stat = fstatSync(fd);
    return stat.isFile() && stat.size <= maxBytes ? readFileSync(fd) : undefined;
  } finally {
    closeSync(fd);
  }
}
