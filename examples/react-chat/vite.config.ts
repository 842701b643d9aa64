import react from '@vitejs/plugin-react';
import { defineConfig } from 'vite';
import { devBackend } from './dev-backend';

export default defineConfig({
  plugins: [react(), devBackend()],
  // The client is a link to ../client. As installed from a registry, it would need none of this.
  resolve: { preserveSymlinks: true },
  optimizeDeps: { exclude: ['chat3-gateway-client'], include: ['socket.io-client'] },
});
