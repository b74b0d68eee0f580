/** Writes leases, outcomes and logs as fast as it can, and says what is durable, until it is killed. */
import { finished, LIMITS, leaseKey, offerOf, started } from "../agent.fixture.ts";
import { Journal } from "./journal.ts";

const journal = new Journal(process.argv[2]!, LIMITS);
for (let i = Number(process.argv[3]); ; i++) {
  const lease = leaseKey({ runId: `run-${i}` });
  await journal.take({ offer: offerOf({ lease }), takenAtMs: i }, started(lease));
  process.stdout.write(`taken ${i}\n`);
  const entries = Buffer.from(`log of ${i}`);
  await journal.appendLog(
    {
      lease,
      firstEntry: 1,
      entryCount: 1,
      encoding: "identity",
      atMs: i,
      entries,
      contentBytes: entries.length,
    },
    { lastSeq: 1, endOffset: 0, bytes: 0, lostBytes: 0 },
  );
  process.stdout.write(`logged ${i}\n`);
  await journal.finish(finished(lease));
  process.stdout.write(`finished ${i}\n`);
}
