/** A gateway as the protocol describes it, over real gRPC and mutual TLS, that does what a test tells it. */
import "reflect-metadata"; // before @peculiar/x509
import { webcrypto } from "node:crypto";
import { Server, ServerCredentials, type ServerDuplexStream, status } from "@grpc/grpc-js";
import * as x509 from "@peculiar/x509";
import { systemClock } from "../../shared/system.ts";
import { ReportPayload } from "../../shared/wire/attempt.ts";
import type { Ack } from "../../shared/wire/gen/insitu/agent/v1/Ack.ts";
import type { AgentMessage__Output } from "../../shared/wire/gen/insitu/agent/v1/AgentMessage.ts";
import type { Heartbeat__Output } from "../../shared/wire/gen/insitu/agent/v1/Heartbeat.ts";
import type { HeartbeatReply } from "../../shared/wire/gen/insitu/agent/v1/HeartbeatReply.ts";
import type { Hello__Output } from "../../shared/wire/gen/insitu/agent/v1/Hello.ts";
import type { LogBatch__Output } from "../../shared/wire/gen/insitu/agent/v1/LogBatch.ts";
import type { LogChunk__Output } from "../../shared/wire/gen/insitu/agent/v1/LogChunk.ts";
import type { ReportBatch__Output } from "../../shared/wire/gen/insitu/agent/v1/ReportBatch.ts";
import type { ServerMessage } from "../../shared/wire/gen/insitu/agent/v1/ServerMessage.ts";
import type { Welcome } from "../../shared/wire/gen/insitu/agent/v1/Welcome.ts";
import { agentGatewayService } from "../../shared/wire/grpc.ts";
import { Until } from "../agent.fixture.ts";
import type { Identity } from "../enrolment/identity.ts";

const P256 = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
type SessionCall = ServerDuplexStream<AgentMessage__Output, ServerMessage>;

export class TestGateway {
  readonly until = new Until();
  readonly hellos: Hello__Output[] = [];
  /** Where each of them came from: address and port. */
  readonly peers: string[] = [];
  readonly heartbeats: Heartbeat__Output[] = [];
  readonly goodbyes: string[] = [];
  readonly refused: string[] = [];
  readonly reports: {
    seq: number;
    payload: ReportPayload;
    bytes: Buffer;
    signature: Buffer;
    keyId: string;
  }[] = [];
  readonly reportBatches: ReportBatch__Output[] = [];
  readonly logBatches: LogBatch__Output[] = [];
  readonly chunks: LogChunk__Output[] = [];
  /** What the gateway does; a test changes it. */
  welcome: Welcome = {};
  answerHeartbeats = true;
  /** Why the agent's certificate is not accepted; empty when it is. */
  refusal = "";
  reply: HeartbeatReply = {};
  /** Undefined for no acknowledgement. */
  ackReports: (seqs: number[]) => Ack | undefined = (seqs) => ({ ackedSeq: seqs.at(-1)! });
  ackLogs: (seqs: number[]) => Ack | undefined = (seqs) => ({ ackedSeq: seqs.at(-1)! });
  session: SessionCall | undefined;
  reportCall: ServerDuplexStream<ReportBatch__Output, Ack> | undefined;
  logCall: ServerDuplexStream<LogBatch__Output, Ack> | undefined;
  readonly #authority: Authority;
  #server: Server | undefined;
  port = 0;

  constructor(authority: Authority) {
    this.#authority = authority;
  }

  /** Again on the same port after `stop`. */
  async start(): Promise<void> {
    const server = new Server();
    this.#server = server;
    server.addService(agentGatewayService, {
      Enrol: (_: unknown, callback: (err: Error) => void) => callback(new Error("not here")),
      Check: (_: unknown, callback: (err: object | null, reply?: object) => void) =>
        this.refusal === ""
          ? callback(null, { wallMs: systemClock.wallMs() })
          : callback({ code: status.PERMISSION_DENIED, details: this.refusal }),
      Session: (call: SessionCall) => this.#onSession(call),
      Report: (call: ServerDuplexStream<ReportBatch__Output, Ack>) => {
        this.reportCall = call;
        call.on("error", () => undefined);
        call.on("end", () => call.end());
        call.on("data", (batch: ReportBatch__Output) => {
          const { reports } = batch;
          this.reportBatches.push(batch);
          for (const { seq, payload, signature, keyId } of reports)
            this.reports.push({
              bytes: payload,
              signature,
              keyId,
              seq: Number(seq),
              payload: ReportPayload.parse(JSON.parse(payload.toString())),
            });
          const ack = this.ackReports(reports.map(({ seq }) => Number(seq)));
          if (ack) call.write(ack);
          this.until.changed();
        });
      },
      Logs: (call: ServerDuplexStream<LogBatch__Output, Ack>) => {
        this.logCall = call;
        call.on("error", () => undefined);
        call.on("end", () => call.end());
        call.on("data", (batch: LogBatch__Output) => {
          const { chunks } = batch;
          this.logBatches.push(batch);
          this.chunks.push(...chunks);
          const ack = this.ackLogs(chunks.map(({ seq }) => Number(seq)));
          if (ack) call.write(ack);
          this.until.changed();
        });
      },
    });
    const { server: tls } = this.#authority;
    const pair = { private_key: Buffer.from(tls.keyPem), cert_chain: Buffer.from(tls.certificatePem) };
    const trusted = ServerCredentials.createSsl(Buffer.from(this.#authority.caPem), [pair], true);
    this.port = await new Promise<number>((resolve, reject) => {
      server.bindAsync(`127.0.0.1:${this.port}`, trusted, (err, port) => (err ? reject(err) : resolve(port)));
    });
  }

  /** As a crash would. */
  stop(): void {
    this.#server?.forceShutdown();
    this.#server = undefined;
  }

  connected(times = 1): Promise<void> {
    return this.until.holds(() => this.hellos.length >= times);
  }

  #onSession(call: SessionCall): void {
    this.session = call;
    call.on("error", () => undefined);
    call.on("end", () => call.end());
    call.on("data", ({ hello, heartbeat, goodbye, refusedOffer }: AgentMessage__Output) => {
      if (hello) {
        this.hellos.push(hello);
        this.peers.push(call.getPeer());
        const version = { major: 1, minor: 0, software: "test", capabilities: [] };
        call.write({
          welcome: {
            version,
            heartbeatMs: 30,
            leaseTtlMs: 1_000,
            wallMs: systemClock.wallMs(),
            ...this.welcome,
          },
        });
      }
      if (heartbeat) {
        this.heartbeats.push(heartbeat);
        if (this.answerHeartbeats)
          call.write({ heartbeatReply: { seq: heartbeat.seq, renewed: heartbeat.held, ...this.reply } });
      }
      if (refusedOffer) this.refused.push(`${refusedOffer.payload.toString()}: ${refusedOffer.reason}`);
      if (goodbye) this.goodbyes.push(goodbye.reason);
      this.until.changed();
    });
  }
}

export interface Authority {
  caPem: string;
  server: { keyPem: string; certificatePem: string };
  /** The identity of an agent that was enrolled by this authority. */
  identity(port: number, change?: Partial<Identity>): Identity;
}

export async function createAuthority(): Promise<Authority> {
  const nowMs = systemClock.wallMs();
  const validity = { notBefore: new Date(nowMs - 60_000), notAfter: new Date(nowMs + 3_600_000) };
  const caKeys = await webcrypto.subtle.generateKey(P256, true, ["sign", "verify"]);
  const ca = await x509.X509CertificateGenerator.createSelfSigned(
    {
      serialNumber: "01",
      name: "CN=test authority",
      ...validity,
      keys: caKeys,
      signingAlgorithm: P256,
      extensions: [new x509.BasicConstraintsExtension(true, 0, true)],
    },
    webcrypto as never,
  );
  const issue = async (subject: string, serialNumber: string, names: x509.JsonGeneralNames) => {
    const keys = await webcrypto.subtle.generateKey(P256, true, ["sign", "verify"]);
    const certificate = await x509.X509CertificateGenerator.create(
      {
        serialNumber,
        subject,
        issuer: ca.subject,
        ...validity,
        publicKey: keys.publicKey,
        signingKey: caKeys.privateKey,
        signingAlgorithm: P256,
        extensions: [new x509.SubjectAlternativeNameExtension(names)],
      },
      webcrypto as never,
    );
    const pkcs8 = await webcrypto.subtle.exportKey("pkcs8", keys.privateKey);
    return {
      keyPem: x509.PemConverter.encode(pkcs8, "PRIVATE KEY"),
      certificatePem: certificate.toString("pem"),
    };
  };
  const server = await issue("CN=gateway", "02", [{ type: "dns", value: "localhost" }]);
  const agent = await issue("CN=a1", "03", [
    { type: "url", value: "spiffe://insitu.test/env/dream/agent/a1" },
  ]);
  return {
    caPem: ca.toString("pem"),
    server,
    identity: (port, change = {}) => ({
      environment: "dream",
      name: "a1",
      id: "dream/a1",
      gateway: `localhost:${port}`,
      trustDomain: "insitu.test",
      keyPem: Buffer.from(agent.keyPem),
      certificatePem: Buffer.from(agent.certificatePem),
      caPem: Buffer.from(ca.toString("pem")),
      roots: { revision: 0, issuerPin: "" },
      offerPublicKeyPem: Buffer.alloc(0),
      notAfterMs: nowMs + 3_600_000,
      ...change,
    }),
  };
}
