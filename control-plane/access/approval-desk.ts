/** Approvals in the store: every replica sees the same ones, and each is used once. */
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import { type Clock, newId } from "../../shared/system.ts";
import type { Approvals } from "../api/services.ts";
import { changeKv, type KvStore } from "../store/kv.ts";
import {
  APPROVAL_BODY_MAX_BYTES,
  APPROVALS_WAITING_MAX,
  type ApprovalRecord,
  type ApprovalRequest,
  ask,
  digestOfRequest,
  judge,
  stateOf,
} from "./approvals.ts";

/** Of the bucket: what is decided or used can be looked up for that long. */
export const APPROVALS_KEPT_MS = 30 * 86_400_000;

export interface ApprovalDeskDeps {
  kv: KvStore<ApprovalRecord>;
  clock: Pick<Clock, "wallMs">;
  log: Pick<Logger, "info">;
}

export function createApprovalDesk({ kv, clock, log }: ApprovalDeskDeps): Approvals {
  const find = async (id: string) => {
    const entry = (await kv.list()).find(({ value }) => value.id === id);
    if (entry === undefined) throw new InsituError("not-found", `there is no approval ${id}`);
    return entry;
  };

  const refuseFlood = async (request: ApprovalRequest, key: string): Promise<void> => {
    if (Buffer.byteLength(request.body) > APPROVAL_BODY_MAX_BYTES) {
      throw new InsituError(
        "request.too-large",
        `a second person has to approve this, and it is larger than ${APPROVAL_BODY_MAX_BYTES} bytes: apply fewer files at once`,
      );
    }
    const nowMs = clock.wallMs();
    const waiting = (await kv.list()).filter(
      ({ key: other, value }) =>
        other !== key && value.requester === request.principal.name && stateOf(value, nowMs) === "waiting",
    );
    if (waiting.length >= APPROVALS_WAITING_MAX) {
      throw new InsituError(
        "limit.exceeded",
        `${waiting.length} requests of ${request.principal.name} wait for approval already; \`insitu approvals deny\` withdraws one`,
      );
    }
  };

  return {
    async ask(request) {
      const key = digestOfRequest(request);
      const nowMs = clock.wallMs();
      const id = newId(nowMs);
      const decide = (current: ApprovalRecord | undefined) => ask(current, request, { nowMs, id });
      const first = decide((await kv.get(key))?.value);
      if (first.changed && first.verdict === "waiting") await refuseFlood(request, key);
      let last = first;
      await changeKv(kv, key, (current) => {
        last = decide(current);
        return last.changed ? last.record : undefined;
      });
      const { verdict, record, changed } = last;
      const facts = { approvalId: record.id, caller: record.requester, path: record.path };
      if (verdict === "take") log.info({ ...facts, by: record.decision?.by }, "approved request carried out");
      else if (changed) log.info({ ...facts, needs: record.needs }, "request waits for approval");
      return { verdict, record };
    },

    async list() {
      const records = (await kv.list()).map(({ value }) => value);
      return records.sort((a, b) => (a.id < b.id ? -1 : 1));
    },

    async get(id) {
      return (await find(id)).value;
    },

    async decide(id, decision, check) {
      const { key } = await find(id);
      const { value } = await changeKv(kv, key, (current) => {
        // Asked for anew since, under another id: that one nobody has looked at.
        if (current?.id !== id) throw new InsituError("not-found", `there is no approval ${id}`);
        check(current);
        return judge(current, decision, clock.wallMs());
      });
      const facts = { approvalId: id, by: decision.by, caller: value?.requester };
      log.info(facts, decision.approved ? "request approved" : "request denied");
      return value as ApprovalRecord;
    },

    async giveBack(record) {
      const entry = (await kv.list()).find(({ value }) => value.id === record.id);
      if (entry === undefined) return;
      await changeKv(kv, entry.key, (current) =>
        current?.id === record.id ? { ...current, usedAtMs: null } : undefined,
      );
    },
  };
}
