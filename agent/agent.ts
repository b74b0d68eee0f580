/** Wires the parts of a running agent and stops them in order. */

import { mkdirSync } from "node:fs";
import { statfs } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import type { Logger } from "pino";
import { type Clock, newSecret, type Random, type Timer } from "../shared/system.ts";
import type { NatsAccess__Output } from "../shared/wire/gen/insitu/agent/v1/NatsAccess.ts";
import type { Roots__Output } from "../shared/wire/gen/insitu/agent/v1/Roots.ts";
import type { Welcome__Output } from "../shared/wire/gen/insitu/agent/v1/Welcome.ts";
import { SOFTWARE_VERSION } from "../shared/wire/protocol.ts";
import type { AgentConfig } from "./config.ts";
import type { Identity } from "./enrolment/identity.ts";
import { Renewal } from "./enrolment/renewal.ts";
import { loadOrMakeReportSigner } from "./enrolment/report-key.ts";
import { acceptRoots, type HeldRoots, pinsOf, saveRoots } from "./enrolment/trusted-roots.ts";
import type { Executor } from "./executors/executor.ts";
import { noopExecutor } from "./executors/noop-executor.ts";
import { ProcessExecutor } from "./executors/process-executor.ts";
import { sweepArtifacts, sweepWorkspaces } from "./executors/workspace.ts";
import { ImageStore } from "./images/image-store.ts";
import { Journal } from "./journal/journal.ts";
import { AttemptService, type OfferMessage } from "./leases/attempt-service.ts";
import { CordonService } from "./leases/cordon-service.ts";
import { OfferReader } from "./leases/offer-reader.ts";
import type { Network } from "./network/network.ts";
import type { SitePolicy } from "./policy/site-policy.ts";
import { LedgerMemory } from "./receipts/ledger-memory.ts";
import { ReceiptSigner } from "./receipts/receipt-signer.ts";
import type { Sandbox } from "./sandbox/sandbox.ts";
import type { Secrets } from "./secrets/secrets.ts";
import { Supervisors } from "./supervisor/client.ts";
import { Gateways } from "./uplink/gateways.ts";
import {
  forgetAccess,
  keepAccess,
  loadAccess,
  loadOrMakeUserKey,
  type NatsAccess,
  normalAccess,
  type UserKey,
} from "./uplink/nats-access.ts";
import { NatsPassage } from "./uplink/nats-passage.ts";
import { PullLoop } from "./uplink/pull-loop.ts";
import { Uplink } from "./uplink/uplink.ts";

const DISK_CHECK_MS = 5_000;
const SWEEP_MS = 60_000;
/** What was seen longer ago is looked at again before an offer is taken. */
const DISK_FRESH_MS = 50;
/** Until the queue gives an offer again that there is no room for. */
const GIVE_BACK_MS = 1_000;
/** When the agent stops: how long it tries to deliver what it has. The rest is delivered by the next start. */
const FLUSH_MS = 3_000;

export class Agent {
  readonly #config: AgentConfig;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #network: Network;
  readonly #passage: NatsPassage;
  readonly #journal: Journal;
  readonly #attempts: AttemptService;
  readonly #uplink: Uplink;
  readonly #renewal: Renewal;
  readonly #reader = new OfferReader();
  readonly #policy: SitePolicy | undefined;
  readonly #userKey: UserKey;
  #roots: { trustDomain: string; held: HeldRoots };
  readonly #ledger: LedgerMemory;
  #pulls: PullLoop | undefined;
  #accessText = "";
  #timer: Timer | undefined;
  #sweeping: Timer | undefined;
  /** Wall time of the centre less the monotonic time here: a clock that jumps at the site moves nothing. */
  #centreOffsetMs: number | undefined;
  readonly #supervisors: Supervisors;
  readonly #cordon: CordonService;
  /** Empty, or what the control plane said when it refused this agent. */
  #deniedWhy = "";
  #stopping = false;
  #diskFull = false;
  #diskCheckedMs = Number.NEGATIVE_INFINITY;
  #pausedBy = "";

  constructor(
    config: AgentConfig,
    identity: Identity,
    world: {
      clock: Clock;
      random: Random;
      log: Logger;
      network: Network;
      sandbox: Sandbox;
      policy: SitePolicy | undefined;
      secrets: Secrets;
      launchSupervisor(directory: string, socketPath: string, failed: (why: Error) => void): void;
    },
  ) {
    this.#config = config;
    this.#clock = world.clock;
    this.#log = world.log;
    this.#policy = world.policy;
    this.#network = world.network;
    mkdirSync(config.stateDir, { recursive: true, mode: 0o700 });
    this.#journal = new Journal(join(config.stateDir, "journal"), { ...config, clock: world.clock });
    this.#ledger = new LedgerMemory({
      file: join(config.stateDir, "ledger.json"),
      clock: world.clock,
      log: world.log,
    });
    this.#userKey = loadOrMakeUserKey(join(config.stateDir, "nats-user.json"));
    this.#reader.setKey(identity.offerPublicKeyPem);
    const { trustDomain, caPem, roots } = identity;
    this.#roots = { trustDomain, held: { ...roots, caPem } };
    this.#supervisors = new Supervisors({
      clock: world.clock,
      stateDir: config.stateDir,
      software: SOFTWARE_VERSION,
      launch: world.launchSupervisor,
    });
    const supervisors = this.#supervisors;
    const signer = loadOrMakeReportSigner(config.stateDir, identity);
    const { environment, name } = identity;
    const receipts = new ReceiptSigner({
      signer,
      identity,
      facts: {
        environment,
        name,
        software: `insitu-agent ${SOFTWARE_VERSION}`,
        sandbox: world.sandbox.facts,
      },
      moment: () => ({
        aheadOfCentreMs:
          this.#centreOffsetMs === undefined ? null : Math.round(this.#clock.wallMs() - this.#centreNowMs()),
        connected: this.#uplink.connected,
      }),
    });
    const { secrets, clock, sandbox } = world;
    const processes = new ProcessExecutor({ ...config, secrets, clock, sandbox, supervisors });
    const images = new ImageStore(config.stateDir);
    const containers = new ProcessExecutor({ ...config, secrets, clock, sandbox, supervisors, images });
    const executors: Executor[] = [processes, containers, noopExecutor];
    const runsContainers = sandbox.runsContainers && config.executors.includes("container");
    this.#attempts = new AttemptService({
      clock: world.clock,
      log: world.log,
      journal: this.#journal,
      reader: this.#reader,
      policy: world.policy,
      executors: executors.filter(({ kind }) => config.executors.includes(kind)),
      receipts,
      environment: identity.environment,
      agent: identity.id,
      stateDir: config.stateDir,
      slots: config.slots,
      centreNowMs: () => this.#centreNowMs(),
      onFree: () => this.#pulls?.poke(),
      onPoison: (payload, reason) => this.#uplink.tellRefused(payload, reason),
    });
    this.#cordon = new CordonService({
      clock: world.clock,
      log: world.log,
      store: this.#journal,
      centreNowMs: () => this.#centreNowMs(),
      onChange: () => {
        this.#uplink.beat();
        this.#pulls?.poke();
      },
      onDeadline: (options) => this.#attempts.drain(options),
    });
    this.#renewal = new Renewal({
      clock: world.clock,
      log: world.log,
      stateDir: config.stateDir,
      identity,
      nowMs: () => this.#centreNowMs(),
      connected: () => this.#uplink.connected,
      request: (csrDer) => this.#uplink.renew(csrDer),
      recover: (csrDer) => this.#uplink.recover(csrDer),
      renewed: (renewed) => {
        receipts.useIdentity(renewed);
        this.#uplink.useIdentity(renewed);
      },
    });
    const gateways = new Gateways(identity.gateway, join(config.stateDir, "gateways.json"));
    this.#passage = new NatsPassage({
      way: world.network.way,
      random: world.random,
      gateways: () => gateways.inOrder,
      identity: () => this.#uplink.identity,
    });
    this.#uplink = new Uplink({
      ...world,
      identity,
      instanceId: newSecret(9),
      journal: this.#journal,
      signer,
      gateways,
      side: {
        hello: () => ({
          slots: config.slots,
          executors: [...config.executors],
          datasets: Object.keys(config.datasets),
          labels: { ...config.labels },
          hostname: hostname(),
          sandbox: { ...sandbox.facts, runsContainers },
          natsUserKey: this.#userKey.publicKey,
        }),
        sitePolicy: () => world.policy?.state,
        held: () => this.#attempts.held(),
        freeSlots: () => this.#attempts.freeSlots,
        notTakingWork: () => this.#notTakingWork(),
        refusedOffers: () => this.#attempts.refusedOffers,
        ledger: () => this.#ledger.ask(),
        ledgerShown: (checkpoint) => this.#ledger.shown(checkpoint),
        welcomed: (welcome) => this.#welcomed(welcome),
        natsAccess: (access) => this.#natsAccess(access),
        roots: (told) => this.#takeRoots(told),
        cancel: (lease, reason) => {
          if (this.#attempts.stop(lease, "cancelled", reason))
            this.#log.info({ ...lease, reason }, "attempt cancelled");
        },
        superseded: (lease) => {
          if (this.#attempts.stop(lease, "cancelled", "superseded"))
            this.#log.warn({ ...lease }, "attempt superseded");
        },
        renewed: (lease) => this.#attempts.granted(lease),
        awaitsGrant: () => this.#attempts.awaitsGrant,
        centreTime: (wallMs) => {
          this.#centreOffsetMs = wallMs - world.clock.monotonicMs();
        },
        cordon: (told) => this.#cordon.hear(told),
        cordonRevision: () => this.#cordon.revision,
        denied: (reason) => this.#denied(reason),
      },
    });
  }

  async start(): Promise<void> {
    await this.#policy?.start(() => {
      this.#uplink.beat();
      this.#pulls?.poke();
    });
    await this.#supervisors.find();
    await sweepArtifacts(join(this.#config.stateDir, "artifacts"));
    await this.#attempts.recover();
    this.#cordon.start();
    await this.#sweep();
    this.#sweeping = this.#clock.every(SWEEP_MS, () => {
      this.#sweep().catch((err: unknown) => this.#log.error({ err }, "workspaces cannot be swept"));
    });
    await this.#checkDisk();
    this.#timer = this.#clock.every(DISK_CHECK_MS, () => {
      this.#checkDisk()
        .then(() => this.#diskFull || this.#pulls?.poke())
        .catch((err: unknown) => this.#log.error({ err }, "disk space cannot be read"));
    });
    this.#uplink.start();
    this.#renewal.start();
    // While the control plane is away, work that is queued already can go on.
    const access = loadAccess(this.#accessFile());
    if (access) this.#pullFrom(access);
  }

  /**
   * Steps go on under their supervisor, or end as interrupted when the configuration says so. What can be delivered
   * within a few seconds is, and the rest waits on disk.
   */
  async stop(reason: string): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#log.info({ reason, held: this.#attempts.held().length }, "agent stops");
    this.#timer?.cancel();
    this.#sweeping?.cancel();
    this.#cordon.close();
    this.#policy?.close();
    await this.#pulls?.close();
    if (this.#config.onStop === "interrupt")
      await this.#attempts.stopAll("interrupted", `the agent stopped: ${reason}`);
    const left = this.#attempts.leave();
    if (left > 0)
      this.#log.info({ steps: left }, "steps go on without the agent; its next start takes them up");
    this.#supervisors.close();
    this.#renewal.close();
    const until = this.#clock.monotonicMs() + FLUSH_MS;
    while (this.#uplink.connected && !this.#journal.delivered && this.#clock.monotonicMs() < until) {
      await this.#clock.sleep(20);
    }
    await this.#uplink.close(reason);
    await this.#journal.close();
  }

  /**
   * Workspaces hold data of the site: one that was left, by a crash or because it could not be removed, goes now. So do
   * supervisors of an earlier release whose last step has ended.
   */
  async #sweep(): Promise<void> {
    await this.#supervisors.dismiss();
    const left = await sweepWorkspaces(this.#config.stateDir, () => this.#attempts.running());
    if (left > 0) this.#log.info({ workspaces: left }, "workspaces of ended attempts removed");
  }

  #centreNowMs(): number {
    return this.#centreOffsetMs === undefined
      ? this.#clock.wallMs()
      : this.#clock.monotonicMs() + this.#centreOffsetMs;
  }

  #mayTakeWork(): boolean {
    const reason = this.#notTakingWork();
    if (reason !== this.#pausedBy) {
      if (reason === "") this.#log.info({ was: this.#pausedBy }, "taking work again");
      else this.#log.warn({ reason }, "taking no work");
      this.#pausedBy = reason;
    }
    return reason === "";
  }

  #notTakingWork(): string {
    if (this.#stopping) return "the agent stops";
    if (this.#deniedWhy !== "") return `the control plane does not take this agent: ${this.#deniedWhy}`;
    if (this.#cordon.cordoned) return "cordoned";
    if (this.#diskFull) return "its disk is nearly full";
    if (this.#journal.outboxFull) return "its outbox is full: results wait for the control plane";
    const closed = this.#policy?.closed ?? "";
    if (closed !== "") return closed;
    if (this.#supervisors.trouble !== "") return this.#supervisors.trouble;
    return "";
  }

  /** What runs goes on; its results stay in the journal. NATS refuses the access that it has, or will soon. */
  #denied(reason: string): void {
    if (reason !== this.#deniedWhy)
      this.#log.error(
        { reason, held: this.#attempts.held().length },
        "the control plane does not take this agent any more; it takes no work",
      );
    this.#deniedWhy = reason;
    this.#accessText = "";
    forgetAccess(this.#accessFile());
    void this.#pulls?.close();
    this.#pulls = undefined;
  }

  #welcomed(welcome: Welcome__Output): void {
    if (this.#deniedWhy !== "") this.#log.info({}, "the control plane takes this agent again");
    this.#deniedWhy = "";
    this.#ledger.connected();
    this.#centreOffsetMs = Number(welcome.wallMs) - this.#clock.monotonicMs();
    if (welcome.offerPublicKeyPem.length > 0) this.#reader.setKey(Buffer.from(welcome.offerPublicKeyPem));
    if (welcome.nats) this.#natsAccess(welcome.nats);
    this.#cordon.hear(welcome.cordon);
    this.#renewal.look();
  }

  #natsAccess({ caPem, ...rest }: NatsAccess__Output): void {
    this.#pullFrom({ ...rest, caPem: Buffer.from(caPem).toString("utf8") });
  }

  /** What connections are open goes on; the certificate is renewed at once when its issuer is another by now. */
  #takeRoots(told: Roots__Output): void {
    const { trustDomain } = this.#roots;
    try {
      const roots = acceptRoots(this.#roots.held, told, { trustDomain, nowMs: this.#centreNowMs() });
      if (roots === undefined) return;
      saveRoots(join(this.#config.stateDir, "identity"), roots);
      this.#roots = { trustDomain, held: roots };
      this.#log.info({ revision: roots.revision, roots: pinsOf(roots.caPem) }, "roots to trust have changed");
      this.#uplink.useRoots(roots);
      this.#renewal.useRoots(roots);
    } catch (err) {
      this.#log.error({ err }, "roots to trust are not changed");
    }
  }

  #pullFrom(told: NatsAccess): void {
    const access = normalAccess(told);
    const text = JSON.stringify(access);
    if (text === this.#accessText || this.#stopping) return;
    this.#accessText = text;
    keepAccess(this.#accessFile(), access);
    const former = this.#pulls;
    this.#pulls = new PullLoop({
      clock: this.#clock,
      log: this.#log,
      access,
      network: this.#network,
      passage: this.#passage,
      userSeed: this.#userKey.seed,
      freeSlots: () => (this.#mayTakeWork() ? this.#attempts.freeSlots : 0),
      onOffer: (message) => {
        this.#take(message).catch((err: unknown) => this.#log.error({ err }, "offer could not be handled"));
      },
    });
    this.#pulls.start();
    void former?.close();
  }

  /**
   * Since the offer was asked for, the agent may have been cordoned, or the disk have filled, and what is taken needs
   * room to run and to report.
   */
  async #take(message: OfferMessage): Promise<void> {
    if (this.#clock.monotonicMs() - this.#diskCheckedMs > DISK_FRESH_MS) await this.#checkDisk();
    if (this.#cordon.cordoned) return message.giveBack(0);
    if (this.#diskFull) return message.giveBack(GIVE_BACK_MS);
    await this.#attempts.take(message);
  }

  #accessFile(): string {
    return join(this.#config.stateDir, "nats.json");
  }

  async #checkDisk(): Promise<void> {
    const { bavail, bsize } = await statfs(this.#config.stateDir);
    const full = bavail * bsize < this.#config.diskFreeMinBytes;
    this.#diskCheckedMs = this.#clock.monotonicMs();
    if (full !== this.#diskFull) this.#log.warn({ freeBytes: bavail * bsize, full }, "disk space changed");
    this.#diskFull = full;
  }
}
