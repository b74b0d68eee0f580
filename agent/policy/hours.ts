/** Whether a moment lies in the hours of a site, in the time zone that the site names. Pure. */
import { DAYS, type Day, type HoursRule } from "./rules.ts";

const DAY_MINUTES = 24 * 60;

/** `wallMs`: since the Unix epoch, by the clock of the site. */
export function isOpen(hours: readonly HoursRule[], wallMs: number): boolean {
  return hours.some((rule) => {
    const { day, minute } = localTime(wallMs, rule.zone);
    if (rule.from < rule.to) return rule.days.includes(day) && minute >= rule.from && minute < rule.to;
    // Over midnight: what began yesterday goes on this morning.
    const eve = DAYS[(DAYS.indexOf(day) + 6) % 7]!;
    return (rule.days.includes(day) && minute >= rule.from) || (rule.days.includes(eve) && minute < rule.to);
  });
}

/** `mon 07:05 in Europe/Zurich`, for people. */
export function describeTime(hours: readonly HoursRule[], wallMs: number): string {
  const zones = [...new Set(hours.map(({ zone }) => zone))];
  return zones
    .map((zone) => {
      const { day, minute } = localTime(wallMs, zone);
      const pad = (n: number): string => String(n).padStart(2, "0");
      return `${day} ${pad(Math.floor(minute / 60))}:${pad(minute % 60)} in ${zone}`;
    })
    .join(", ");
}

const formats = new Map<string, Intl.DateTimeFormat>();

function localTime(wallMs: number, zone: string): { day: Day; minute: number } {
  let format = formats.get(zone);
  if (format === undefined) {
    format = new Intl.DateTimeFormat("en-US", {
      timeZone: zone,
      weekday: "short",
      hour: "2-digit",
      minute: "2-digit",
      hourCycle: "h23",
    });
    formats.set(zone, format);
  }
  const parts = Object.fromEntries(format.formatToParts(wallMs).map(({ type, value }) => [type, value]));
  const minute = (Number(parts.hour) * 60 + Number(parts.minute)) % DAY_MINUTES;
  return { day: parts.weekday!.toLowerCase() as Day, minute };
}
