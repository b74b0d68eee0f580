import type { Demo } from "../demo.ts";

declare const demo: Demo;
export default demo;
