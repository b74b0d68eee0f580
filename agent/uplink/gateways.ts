/** Where the control plane can be reached: the address of the join token, and what its replicas said of each other. */
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { z } from "zod";

const Addresses = z.array(z.string().min(1)).max(100);

export class Gateways {
  readonly #enrolled: string;
  readonly #file: string;
  #known: string[];
  #at = 0;

  /** `enrolled` is always among them; `file` keeps the others over restarts. */
  constructor(enrolled: string, file: string) {
    this.#enrolled = enrolled;
    this.#file = file;
    this.#known = load(file);
  }

  get current(): string {
    const all = this.#all();
    return all[this.#at % all.length]!;
  }

  /** The current one first. */
  get inOrder(): string[] {
    const all = this.#all();
    return [...all.slice(this.#at), ...all.slice(0, this.#at)];
  }

  /** The next one, when the current one cannot be reached or has asked us to leave. */
  advance(): void {
    this.#at = (this.#at + 1) % this.#all().length;
  }

  /** What a welcome says. The current address stays current. */
  learn(addresses: readonly string[]): void {
    const parsed = Addresses.safeParse(addresses);
    if (!parsed.success || addresses.length === 0) return;
    const { current } = this;
    if (JSON.stringify(parsed.data) !== JSON.stringify(this.#known)) {
      this.#known = parsed.data;
      keep(this.#file, parsed.data);
    }
    this.#at = Math.max(0, this.#all().indexOf(current));
  }

  #all(): string[] {
    return [...new Set([this.#enrolled, ...this.#known])];
  }
}

function load(file: string): string[] {
  try {
    return Addresses.parse(JSON.parse(readFileSync(file, "utf8")));
  } catch {
    return []; // none yet, or damaged: the next welcome brings them
  }
}

function keep(file: string, addresses: string[]): void {
  try {
    writeFileSync(`${file}.new`, JSON.stringify(addresses));
    renameSync(`${file}.new`, file);
  } catch {
    // A full disk: they are known until the next start.
  }
}
