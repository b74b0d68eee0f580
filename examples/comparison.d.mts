import type { Comparison } from "./demo.ts";
export declare function comparison(rows: Comparison["rows"], tolerance: number): Comparison;
