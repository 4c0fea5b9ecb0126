// What scenes in Chromium have in common.

import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { chromium } from "playwright-core";

/** No scene may take longer. */
export const scene = { timeout: 30_000 };

const options = {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
};

export function launch() {
  return chromium.launch(options);
}

/**
 * A browser of its own, with its profile in this folder, whose user lets pages of one site use the cookies of another: not all browsers
 * keep them apart. Closing its context closes it.
 */
export async function launchProfile(folder) {
  await mkdir(join(folder, "Default"));
  const profile = { cookie_controls_mode: 0, block_third_party_cookies: false };
  await writeFile(join(folder, "Default", "Preferences"), JSON.stringify({ profile }));
  return chromium.launchPersistentContext(folder, options);
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
