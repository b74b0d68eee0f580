/** A mark in NATS for as long as a restore is under way: nobody may start on half of the streams. */
import { type JetStreamManager, StorageType } from "nats";
import { InsituError } from "../../shared/errors.ts";
import { RESTORE_MARK, subjects } from "../../shared/wire/subjects.ts";
import { errorCode, STREAM_NOT_FOUND, storeError } from "./jetstream.ts";

export async function setRestoreMark(manager: JetStreamManager, replicas: number | undefined): Promise<void> {
  try {
    await manager.streams.add({
      name: RESTORE_MARK,
      subjects: [subjects.restoring],
      storage: StorageType.File,
      num_replicas: replicas ?? 1,
    });
  } catch (err) {
    throw storeError(err, "mark of the restore");
  }
}

export async function isRestoreMarked(manager: JetStreamManager): Promise<boolean> {
  try {
    await manager.streams.info(RESTORE_MARK);
    return true;
  } catch (err) {
    if (errorCode(err) === STREAM_NOT_FOUND) return false;
    throw storeError(err, "mark of the restore");
  }
}

export async function clearRestoreMark(manager: JetStreamManager): Promise<void> {
  await manager.streams.delete(RESTORE_MARK).catch((err: unknown) => {
    if (errorCode(err) !== STREAM_NOT_FOUND) throw storeError(err, "mark of the restore");
  });
}

/** @throws conflict when a restore into this NATS has not ended */
export async function refuseHalfRestored(manager: JetStreamManager): Promise<void> {
  if (!(await isRestoreMarked(manager))) return;
  throw new InsituError(
    "conflict",
    "a restore into this NATS is under way, or was interrupted: let it end, or run insitu backup restore again",
  );
}
