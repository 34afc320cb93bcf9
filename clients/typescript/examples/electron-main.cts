/** The same in CommonJS: on Node 20.19 or later, and the Electron that has it, `require` loads the ES module. */

import electron = require("electron");
import vlmd = require("vlmd");

const client = new vlmd.Client({ model: "demo" });

electron.ipcMain.handle("describe", async (_event, paths: readonly string[]) => client.describeAll(paths));
electron.app.on("will-quit", () => void client.close());
