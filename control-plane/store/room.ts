/** When the disk of a nats-server counts as full, and when starting the server again mends what a full one broke. */

/** With less a write may have failed: several messages of the largest size. */
export const FULL_BELOW_BYTES = 32 * 1024 ** 2;
/** From here on it is worth a start. More than the above, so that a disk at the edge does not start it again and again. */
export const ROOM_FROM_BYTES = 48 * 1024 ** 2;
/** Between two starts: of a quota that is used up `statfs` says nothing, and the server would end all the time. */
export const STARTS_APART_MS = 15_000;

export interface Room {
  full: boolean;
  /** Monotonic; of the last start that was asked for here. */
  startedAtMs: number | undefined;
}

export const ROOM_AT_START: Room = { full: false, startedAtMs: undefined };

export interface Look {
  freeBytes: number;
  /** False: no file can be made, however many bytes are free. */
  inodesLeft: boolean;
  /** The server has said that a write failed, since the last look. */
  writeFailed: boolean;
  /** Monotonic. */
  nowMs: number;
}

export type RoomEffect = "say full" | "start again";

/** Pure. A disk that was full needs a start also when nothing was seen to fail: old servers say nothing. */
export function look(room: Room, seen: Look): { room: Room; effect: RoomEffect | undefined } {
  const full = seen.freeBytes < FULL_BELOW_BYTES || !seen.inodesLeft;
  if (!room.full)
    return full || seen.writeFailed
      ? { room: { ...room, full: true }, effect: "say full" }
      : { room, effect: undefined };
  const early = room.startedAtMs !== undefined && seen.nowMs < room.startedAtMs + STARTS_APART_MS;
  if (full || seen.freeBytes < ROOM_FROM_BYTES || early) return { room, effect: undefined };
  return { room: { full: false, startedAtMs: seen.nowMs }, effect: "start again" };
}
