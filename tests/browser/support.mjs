// What scenes in Chromium have in common.

import { setTimeout as sleep } from "node:timers/promises";
import { chromium } from "playwright-core";

/** No scene may take longer. */
export const scene = { timeout: 30_000 };

export function launch() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
  });
}

/** Tries until the claim holds, and gives back what it gives. */
export async function eventually(claim) {
  const deadline = Date.now() + 10_000;
  for (;;) {
    try {
      return await claim();
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await sleep(50);
    }
  }
}
