/**
 * The policy of the site, as its file says it. Without a file that can be used, no work is taken; once there was one,
 * it stays in force until the file holds another that can be used.
 */
import { createHash } from "node:crypto";
import { statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock, Timer } from "../../shared/system.ts";
import type { Offer } from "../../shared/wire/attempt.ts";
import type { OfferOwners } from "../../shared/wire/offer-owners.ts";
import { type Asked, explainRules, type RuleVerdict } from "./allow-lists.ts";
import { type CedarPolicies, type OpenCedar, questionOf } from "./cedar-question.ts";
import type { OfferPolicy, SiteDecision } from "./decision.ts";
import { isOpen } from "./hours.ts";
import { readOwnedFile } from "./owned-file.ts";
import { sealPath } from "./policy-seal.ts";
import type { SiteRules } from "./rules.ts";
import type { SealKeeper } from "./seal-keeper.ts";

/** The control plane takes a little more in one message. */
const TROUBLE_MAX_CHARS = 800;
/** How often the file is looked at. */
const WATCH_MS = 2_000;

export interface LoadedPolicy {
  rules: SiteRules;
  cedar: CedarPolicies | undefined;
  cedarPath: string | undefined;
  /** `sha256:` of the file's bytes; with Cedar policies, of the digests of both files, a line each. */
  digest: string;
  /** Of its signature, when one is asked for. */
  serial: number | undefined;
}

export interface LoadOptions {
  /** Of the agent's user. */
  uid: number;
  openCedar: OpenCedar;
  /** Undefined: no signature is asked for. */
  seals?: Pick<SealKeeper, "check"> | undefined;
}

/** @throws request.invalid: it may not be read, others may write to it, or what is in it is not valid */
export async function loadPolicy(
  path: string,
  { uid, openCedar, seals }: LoadOptions,
): Promise<LoadedPolicy> {
  const { bytes, text } = readOwnedFile(path, uid);
  // Late: an agent without a policy needs no parser that knows lines.
  const { parseRules } = await import("./parse-rules.ts");
  const rules = parseRules(path, text);
  if (rules.cedar === undefined) {
    const digest = digestOf(bytes);
    return {
      rules,
      digest,
      serial: seals?.check(path, digest).serial,
      cedar: undefined,
      cedarPath: undefined,
    };
  }
  const cedarPath = resolve(dirname(path), rules.cedar);
  const file = readOwnedFile(cedarPath, uid);
  const digest = digestOf(`${digestOf(bytes)}\n${digestOf(file.bytes)}\n`);
  const serial = seals?.check(path, digest).serial;
  return { rules, digest, serial, cedar: await openCedar(cedarPath, file.text), cedarPath };
}

function digestOf(bytes: Buffer | string): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

/** One verdict for each rule. `wallMs`: by the clock of the site. */
export async function explainPolicy(
  { rules, cedar }: Pick<LoadedPolicy, "rules" | "cedar">,
  asked: Asked,
  wallMs: number,
): Promise<RuleVerdict[]> {
  const verdicts = explainRules(rules, asked, wallMs);
  return cedar === undefined
    ? verdicts
    : [...verdicts, { rule: "cedar", ...(await cedar.answer(questionOf(asked))) }];
}

/** The first rule that forbids it, in words for the run; the others are counted. */
function vetoOf(verdicts: readonly RuleVerdict[]): string | undefined {
  const [first, ...rest] = verdicts.filter(({ allowed }) => !allowed);
  if (first === undefined) return undefined;
  const more = rest.length === 0 ? "" : `; also rule ${rest.map(({ rule }) => rule).join(", ")}`;
  return `the site's policy refuses it, rule ${first.rule}: ${first.message}${more}`;
}

export interface SitePolicyOptions {
  path: string;
  /** Of the agent's user. */
  uid: number;
  openCedar: OpenCedar;
  /** Undefined: the policy needs no signature. */
  seals?: SealKeeper | undefined;
  clock: Clock;
  log: Logger;
}

export class SitePolicy implements OfferPolicy {
  readonly #path: string;
  readonly #load: LoadOptions;
  readonly #seals: SealKeeper | undefined;
  readonly #clock: Clock;
  readonly #log: Logger;
  #loaded: LoadedPolicy | undefined;
  #seen = "";
  #trouble = "it has not been read yet";
  #timer: Timer | undefined;
  #changed: () => void = () => undefined;
  #reading: Promise<void> = Promise.resolve();

  constructor(options: SitePolicyOptions) {
    this.#path = options.path;
    this.#load = options;
    this.#seals = options.seals;
    this.#clock = options.clock;
    this.#log = options.log;
  }

  /** `changed` is called after each change of `state`. */
  async start(changed: () => void): Promise<void> {
    await this.look();
    this.#changed = changed;
    this.#timer = this.#clock.every(WATCH_MS, () => void this.look());
  }

  close(): void {
    this.#timer?.cancel();
    this.#loaded?.cedar?.close();
  }

  /** Reads the file again if it has changed. Never rejects. */
  look(): Promise<void> {
    this.#reading = this.#reading.then(() => this.#look());
    return this.#reading;
  }

  /** What the control plane is told. `trouble`: empty, or why the file as it is now is not in force. */
  get state(): { digest: string; trouble: string } {
    return { digest: this.#loaded?.digest ?? "", trouble: this.#trouble };
  }

  /** Empty, or why no work is taken at all now. */
  get closed(): string {
    if (this.#loaded === undefined) return this.#trouble;
    const { hours } = this.#loaded.rules;
    return hours === undefined || isOpen(hours, this.#clock.wallMs())
      ? ""
      : "outside the hours of its site's policy";
  }

  async decide(offer: Offer, owners?: OfferOwners): Promise<SiteDecision> {
    const { closed } = this;
    if (closed !== "" || this.#loaded === undefined) return { kind: "closed", reason: closed };
    const { digest } = this.#loaded;
    const message = vetoOf(await explainPolicy(this.#loaded, { ...offer, owners }, this.#clock.wallMs()));
    return message === undefined ? { kind: "allow", digest } : { kind: "veto", digest, message };
  }

  async #look(): Promise<void> {
    const paths = [this.#path, this.#loaded?.cedarPath ?? this.#path, sealPath(this.#path)];
    const mark = paths.map(markOf).join();
    // What was wrong may have been a directory above it, so it is tried again.
    if (mark === this.#seen && this.#trouble === "") return;
    this.#seen = mark;
    const before = JSON.stringify(this.state);
    await this.#read();
    if (JSON.stringify(this.state) !== before) this.#changed();
  }

  async #read(): Promise<void> {
    try {
      const loaded = await loadPolicy(this.#path, this.#load);
      this.#keep(loaded);
      const { digest, serial } = loaded;
      if (digest !== this.#loaded?.digest)
        this.#log.info({ path: this.#path, digest, ...(serial ? { serial } : {}) }, "site policy in force");
      this.#loaded?.cedar?.close();
      this.#loaded = loaded;
      this.#trouble = "";
    } catch (thrown) {
      const message = InsituError.from(thrown).message.slice(0, TROUBLE_MAX_CHARS);
      const trouble =
        this.#loaded === undefined ? message : `${message}; the policy from before stays in force`;
      if (trouble === this.#trouble) return;
      this.#trouble = trouble;
      const inForce = this.#loaded?.digest ?? "none: no work is taken";
      this.#log.error({ path: this.#path, reason: trouble, inForce }, "site policy cannot be used");
    }
  }

  /** Before it is in force: that an older one comes after it is known also to the next start. */
  #keep({ digest, serial, cedar }: LoadedPolicy): void {
    if (serial === undefined) return;
    try {
      this.#seals?.keep({ serial, digest });
    } catch (err) {
      cedar?.close();
      throw err;
    }
  }
}

/** Changes with the file, its rights and its replacement by another. */
function markOf(path: string): string {
  try {
    const { dev, ino, size, mtimeMs, ctimeMs, mode, uid } = statSync(path);
    return [dev, ino, size, mtimeMs, ctimeMs, mode, uid].join("/");
  } catch {
    return "missing"; // what is wrong, reading it says
  }
}
