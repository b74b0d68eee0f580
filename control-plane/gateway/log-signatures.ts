/** Whether chunks of logs are what their agent signed, where they come in. Again when they are read: log-doubts.ts. */
import { InsituError } from "../../shared/errors.ts";
import {
  LOG_BATCH_PURPOSE,
  type LogSignature,
  logLeaf,
  type SignedChunk,
} from "../../shared/wire/log-signature.ts";
import type { ReportKeys, Signed } from "./report-keys.ts";

/**
 * For chunks that came in one batch, whose signature is looked at once. What it gives resolves with what is to be kept
 * of the chunk at that index: undefined of an agent that does not sign.
 * @throws InsituError `log.unsigned`, `log.forged`: for good; anything else: cannot be told now
 */
export function checkLogBatch(
  keys: Pick<ReportKeys, "lookAtBatch" | "mustSign">,
  agent: string,
  chunks: readonly SignedChunk[],
  sent: Signed,
): (index: number) => Promise<LogSignature | undefined> {
  const signature = Buffer.from(sent.signature).toString("base64");
  let looking: ReturnType<ReportKeys["lookAtBatch"]> | undefined;
  let mustSign: Promise<boolean> | undefined;
  return async (index) => {
    if (sent.signature.length === 0) {
      mustSign ??= keys.mustSign(agent);
      if (!(await mustSign)) return undefined;
      throw new InsituError(
        "log.unsigned",
        `the log chunk is not signed, and ${agent} has to sign: upgrade it`,
      );
    }
    looking ??= keys.lookAtBatch(LOG_BATCH_PURPOSE, agent, chunks.map(logLeaf), sent);
    const { tree, isKnown, isSigned } = await looking;
    if (isSigned) return { agent, keyId: sent.keyId, signature, batch: tree.placeOf(index) };
    throw new InsituError(
      "log.forged",
      isKnown
        ? `the signature of the log chunk is not one of ${agent} over this chunk`
        : `the log chunk is signed with a key that is not known to be one of ${agent}`,
    );
  };
}
