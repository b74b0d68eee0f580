/** Offers on the work queue `WORK`: signed, one message a grant, taken by agents of one environment. */
import { headers, type JetStreamClient, type NatsConnection } from "nats";
import { OFFER_SIGNATURE_HEADER, type Offer } from "../../shared/wire/attempt.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import type { OfferQueue } from "../runs/ports.ts";
import { storeError } from "./jetstream.ts";

const PUBLISH_TIMEOUT_MS = 5_000;

export class JetStreamOfferQueue implements OfferQueue {
  readonly #jetstream: JetStreamClient;
  readonly #sign: (payload: Uint8Array) => string;

  constructor(connection: NatsConnection, sign: (payload: Uint8Array) => string) {
    this.#jetstream = connection.jetstream();
    this.#sign = sign;
  }

  async publish(offer: Offer): Promise<void> {
    const { runId, stepId, epoch } = offer.lease;
    const payload = Buffer.from(JSON.stringify(offer));
    const head = headers();
    head.set(OFFER_SIGNATURE_HEADER, this.#sign(payload));
    try {
      await this.#jetstream.publish(subjects.work(offer.environment), payload, {
        headers: head,
        msgID: `${runId}/${stepId}/${epoch}`,
        expect: { streamName: STREAMS.work },
        timeout: PUBLISH_TIMEOUT_MS,
      });
    } catch (err) {
      throw storeError(err, `offer of step ${stepId} in run ${runId}`);
    }
  }
}
