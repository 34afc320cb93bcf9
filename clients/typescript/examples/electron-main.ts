/**
 * Electron's main process, as an ES module: a splash window while the model loads, descriptions on request, one daemon
 * that ends with the app.
 *
 * The app brings the daemon along in `resources/vlmd` (see the package's README), or the user has installed it.
 */

import { join } from "node:path";

import { BrowserWindow, app, dialog, ipcMain } from "electron";
import type { WebContents } from "electron";
import { Client, DaemonNotFoundError, VlmdError } from "vlmd";
import type { JobProgress } from "vlmd";

const client = new Client({
  model: "mlx-community/Qwen3-VL-2B-Instruct-4bit",
  log: (line) => console.log(line),
});

/** Jobs of each window, so that closing it cancels them. */
const jobs = new Map<WebContents, AbortController>();

async function start(): Promise<void> {
  const splash = new BrowserWindow({ width: 400, height: 200, frame: false });
  await splash.loadFile("splash.html");
  try {
    for await (const event of client.start()) splash.webContents.send("startup", event);
  } catch (error) {
    const hint = error instanceof DaemonNotFoundError ? "\n\nInstall it with: pip install 'vlmd[mlx]'" : "";
    dialog.showErrorBox("The vision model could not be started", `${String(error)}${hint}`);
    app.quit();
    return;
  }
  const window = new BrowserWindow({ webPreferences: { preload: join(import.meta.dirname, "preload.cjs") } });
  await window.loadFile("index.html");
  splash.destroy();
}

ipcMain.handle("describe", async ({ sender }, paths: readonly string[]) => {
  const job = new AbortController();
  jobs.set(sender, job);
  sender.once("destroyed", () => job.abort());
  const onProgress = (progress: JobProgress): void => sender.send("progress", progress);
  try {
    for await (const batch of client.describe(paths, { signal: job.signal, onProgress })) {
      sender.send("frames", batch.results);
    }
    return { ok: true };
  } catch (error) {
    // Errors lose their class between processes: what the page needs is the code.
    return { ok: false, code: error instanceof VlmdError ? error.code : "unknown", message: String(error) };
  } finally {
    jobs.delete(sender);
  }
});

ipcMain.handle("cancel", ({ sender }) => jobs.get(sender)?.abort());

ipcMain.handle("ask", async (_event, prompt: string, picture: Uint8Array) =>
  client.generate(prompt, { images: [picture], maxTokens: 300 }).text(),
);

let closed = false;
app.on("before-quit", (event) => {
  if (closed) return;
  event.preventDefault();
  void client.close().finally(() => {
    closed = true;
    app.quit();
  });
});

void app.whenReady().then(start);
